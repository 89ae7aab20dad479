// The page asks the service and shows what it says. It decides nothing about permissions itself.

import { picture } from "./pictures.js";

const SHOWN = 6;
const LOGGED = 4;
const EACH = 2; // goods of each category, where all categories are shown
const byId = (id) => document.getElementById(id);
const money = new Intl.NumberFormat("en", { style: "currency", currency: "EUR" });

const TITLES = { fused: "Fused", online: "Online", crm: "CRM", session: "Session", popular: "Popular", none: "Nobody" };
const SOURCES = { session: "this visit", online: "what you looked at", crm: "your orders and master data" };
const STATES = {
  none: "no permission",
  online: "online usage",
  crm: "customer data",
  both_linked: "both, and you are known to be one person",
  both_unlinked: "both, but nothing says that visitor and customer are one",
  objected: "an objection stands",
};

/** All that the page knows. `person` holds the ids; they are in no cookie and no storage. */
const page = { products: new Map(), person: null, session: [], permitted: { online: false, crm: false }, loggedIn: false };

// ---- Asking the service -----------------------------------------------------------------------------------

async function call(method, path, body) {
  const response = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const said = await response.json();
  if (!response.ok) throw new Error(typeof said.detail === "string" ? said.detail : `${path}: ${response.status}`);
  return said;
}

/** Do one thing after another: a click that comes while another is under way waits for it. */
let queue = Promise.resolve();
function next(task) {
  queue = queue.then(async () => {
    document.body.setAttribute("aria-busy", "true");
    try {
      await task();
      byId("problem").hidden = true;
    } catch (error) {
      byId("problem").textContent = `The service did not answer as hoped: ${error.message}`;
      byId("problem").hidden = false;
    }
    document.body.removeAttribute("aria-busy");
  });
}

const channel = () => document.querySelector("input[name=channel]:checked").value;

async function recommend() {
  const { visitor_id, customer_id } = page.person;
  const answer = await call("POST", "/recommendations", {
    session: page.session,
    visitor_id,
    customer_id,
    logged_in: page.loggedIn,
    channel: channel(),
    n: SHOWN,
  });
  show(answer);
}

async function become(kind) {
  page.person = await call("POST", "/demo/persons", { kind });
  page.session = [];
  page.permitted = { online: page.person.online, crm: page.person.crm };
  page.loggedIn = page.person.logged_in;
  byId("log").replaceChildren();
  note(
    kind === "new" ? "You are new here: nothing is known." : `Known: ${page.person.viewed} items seen, ${page.person.bought} bought.`,
    kind === "new" ? "no" : "yes",
  );
  await recommend();
}

async function decide(permission) {
  const granting = !page.permitted[permission];
  const who = permission === "online" ? { visitor_id: page.person.visitor_id } : { customer_id: page.person.customer_id };
  const done = await call("PUT", "/permissions", { ...who, state: granting ? "granted" : "withdrawn" });
  page.permitted[permission] = granting;
  const what = permission === "online" ? "Online usage" : "Customer data";
  if (granting) note(`${what}: permitted from now on.`, "yes");
  else note(`${what}: withdrawn, ${plural(done.profile_rows_purged, "row")} deleted.`, "no");
  if (granting) await link();
  await recommend();
}

async function logIn() {
  page.loggedIn = !page.loggedIn;
  await link();
  await recommend();
}

/** A login is noted only where both permissions hold; so it is told again when one is granted. */
async function link() {
  if (!page.loggedIn) return;
  const { visitor_id, customer_id } = page.person;
  const { linked } = await call("POST", "/links", { visitor_id, customer_id });
  note(linked ? "Login noted: visitor and customer are one." : "Not joined: that takes both permissions, and a browser on which no other login was noted.", linked ? "yes" : "no");
}

/** The page sends every click, as a careless shop would. Whether it is kept, the ledger says. */
async function look(product) {
  page.session.push(product.item_id);
  const seen = await call("POST", "/events", { visitor_id: page.person.visitor_id, item_id: product.item_id, event_type: "view" });
  note(`${product.title} seen: ${kept(seen)}`, seen.stored ? "yes" : "no");
  await recommend();
}

async function buy(product) {
  const seen = await call("POST", "/events", { customer_id: page.person.customer_id, item_id: product.item_id, event_type: "order", quantity: 1 });
  note(`${product.title} bought: ${kept(seen)}`, seen.stored ? "yes" : "no");
  await recommend();
}

const kept = (seen) => (seen.stored ? `kept with your ${seen.source === "crm" ? "customer" : "online"} data.` : "not kept, for it is not permitted.");
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// ---- Showing ----------------------------------------------------------------------------------------------

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function note(text, kind) {
  const log = byId("log");
  log.prepend(element("li", { class: kind }, text));
  while (log.children.length > LOGGED) log.lastElementChild.remove();
}

function card(product, why) {
  const looking = element("button", { type: "button", class: "look", "data-item": product.item_id });
  looking.append(picture(product), element("span", { class: "title" }, product.title));
  looking.addEventListener("click", () => next(() => look(product)));
  const buying = element("button", { type: "button", class: "buy", "aria-label": `Buy ${product.title}` }, "Buy");
  buying.addEventListener("click", () => next(() => buy(product)));
  const made = element("article", { class: "card" }, looking);
  if (why) made.append(element("p", { class: "why" }, why));
  made.append(element("div", { class: "foot" }, element("span", { class: "price" }, money.format(product.price)), buying));
  return made;
}

/** Keep the keyboard's place when cards are exchanged. */
function replaced(container, cards) {
  const focused = container.contains(document.activeElement);
  container.replaceChildren(...cards);
  if (focused) container.focus();
}

function show(answer) {
  const { basis, tier, items } = answer;
  for (const name of ["online", "crm"]) byId(name).setAttribute("aria-checked", String(page.permitted[name]));
  byId("login").setAttribute("aria-checked", String(page.loggedIn));
  const badge = byId("tier");
  badge.dataset.tier = tier;
  badge.textContent = TITLES[tier];
  for (const step of byId("ladder").children) {
    const here = step.dataset.tier === tier;
    step.classList.toggle("here", here);
    if (here) step.setAttribute("aria-current", "true");
    else step.removeAttribute("aria-current");
  }
  byId("reason").textContent = sentence(basis.reason);
  byId("read").textContent = `Read about you: ${words(basis.sources)}.`;
  byId("recommendations-title").textContent = tier === "popular" ? "Popular in the shop" : "Recommended for you";
  replaced(byId("recommendations"), items.map(({ item_id, why }) => card(page.products.get(item_id), sentence(why))));
  byId("visit").textContent = page.session.length
    ? `This visit: ${page.session.slice(-5).map((item) => page.products.get(item).title).join(", ")}`
    : "Look at some goods: they make up this visit, which the page sends along and nobody keeps.";
  showBasis(basis);
  byId("parameters").replaceChildren(...answer.main_parameters.map((line) => element("li", {}, line)));
  document.body.dataset.tier = tier;
}

function showBasis(basis) {
  const rows = [
    ["Permitted", STATES[basis.state]],
    ["Side", basis.side === "online" ? "online: shop, app, ads" : "CRM: e-mail, print, call centre, push"],
    ["On the way", basis.reasons.join("; ")],
    ["Model", short(basis.bundle_digest ?? basis.fill_digest)],
    ["Filled up", basis.filled ? `${plural(basis.filled, "item")} from the popular list` : "no"],
    ["Policy", basis.policy_version],
    ["Ledger", basis.ledger_position === null ? "none" : `position ${basis.ledger_position}`],
    ["Inputs", Object.entries(basis.input_digests).map(([name, digest]) => `${name} ${short(digest)}`).join(", ") || "no digest: nothing to recognise you by"],
    ["Contact", basis.contact?.length ? basis.contact.join(", ") : "in no channel"],
  ];
  byId("basis").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

const short = (digest) => (digest ? `${digest.replace("sha256:", "").slice(0, 12)}…` : "none");
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function words(sources) {
  const said = ["session", "online", "crm"].filter((source) => sources.includes(source)).map((source) => SOURCES[source]);
  if (!said.length) return "nothing";
  return said.length === 1 ? said[0] : `${said.slice(0, -1).join(", ")} and ${said.at(-1)}`;
}

function showGoods() {
  const wanted = byId("category").value;
  const goods = [...page.products.values()];
  const within = (name) => goods.filter((product) => product.category === name);
  const chosen = wanted ? within(wanted) : categories().flatMap((name) => within(name).slice(0, EACH));
  byId("goods").replaceChildren(...chosen.map((product) => card(product)));
}

const categories = () => [...new Set([...page.products.values()].map((product) => product.category))].sort();

async function begin() {
  for (const product of await call("GET", "/demo/products")) page.products.set(product.item_id, product);
  byId("category").append(
    element("option", { value: "" }, "Some of each"),
    ...categories().map((name) => element("option", { value: name }, sentence(name))),
  );
  showGoods();
  byId("category").addEventListener("change", showGoods);
  for (const name of ["online", "crm"]) byId(name).addEventListener("click", () => next(() => decide(name)));
  byId("login").addEventListener("click", () => next(logIn));
  for (const radio of document.querySelectorAll("input[name=channel]")) radio.addEventListener("change", () => next(recommend));
  for (const button of document.querySelectorAll("[data-person]")) {
    button.addEventListener("click", () =>
      next(async () => {
        for (const other of document.querySelectorAll("[data-person]")) other.setAttribute("aria-pressed", String(other === button));
        await become(button.dataset.person);
      }),
    );
  }
  document.querySelector("[data-person=new]").click();
}

next(begin);
