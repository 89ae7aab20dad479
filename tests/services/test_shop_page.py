"""The shop page of the reference service, in a real browser: each switch changes who answers.

A person flips the two permissions, looks, buys and logs in; after each step the page must show what the
service said, and that must be what the matrix allows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Response, Route, sync_playwright
from root_packages import import_root_package

import_root_package("examples")

import uvicorn  # noqa: E402
from examples.service.app import Parts, create_app, opened  # noqa: E402
from examples.service.demo import add_demo  # noqa: E402
from examples.service.shop import Shop, prepare  # noqa: E402

pytestmark = pytest.mark.service("chromium")

_NEEDED = (
    "Chromium is not here: install it (Debian: apt-get install chromium), "
    "or set CONSENTIER_TEST_CHROMIUM to the path of one"
)
_TITLES = {
    "fused": "Fused", "online": "Online", "crm": "CRM", "session": "Session", "popular": "Popular",
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium that is installed already."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CONSENTIER_TEST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.fail(_NEEDED, pytrace=False)
    # Chromium's sandbox refuses to run as root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The simulated shop with its models."""
    directory = tmp_path_factory.mktemp("service") / "shop"
    prepare(directory)
    return Shop.open(directory)


@dataclasses.dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    parts: Parts


@pytest.fixture(scope="module")
def service(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service on a port of this machine that is free."""
    with opened(shop.bundles, tmp_path_factory.mktemp("state"), shop.catalogue) as parts:
        app = create_app(parts)
        add_demo(app, parts, shop)
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Service(f"http://127.0.0.1:{port}", parts)
        server.should_exit = True
        thread.join()


@dataclasses.dataclass
class Visit:
    """Somebody in front of the page."""

    page: Page
    shop: Shop
    answer: dict[str, Any] = dataclasses.field(default_factory=dict)
    wrong: list[str] = dataclasses.field(default_factory=list)
    """What the page complained of, or asked elsewhere."""

    def do(self, action: Callable[[], object]) -> dict[str, Any]:
        """Do something that makes the page ask, and check that it shows what it was told."""
        with self.page.expect_response(_is_answer) as told:
            action()
        self.answer = told.value.json()
        self.page.wait_for_selector("body:not([aria-busy])")
        self.shows_the_answer()
        return self.answer

    def shows_the_answer(self) -> None:
        """Tier, reason, sources and goods, as the service said."""
        page, said = self.page, self.answer
        assert page.inner_text("#tier") == _TITLES[said["tier"]]
        assert page.inner_text("#ladder [aria-current]").startswith(_TITLES[said["tier"]])
        assert page.inner_text("#reason").lower() == said["basis"]["reason"].lower()
        titles = [self.shop.products[item["item_id"]].title for item in said["items"]]
        assert page.locator("#recommendations .title").all_inner_texts() == titles
        whys = [item["why"].lower() for item in said["items"]]
        assert [text.lower() for text in page.locator("#recommendations .why").all_inner_texts()] == whys
        read = page.inner_text("#read")
        for source, words in (
            ("session", "this visit"), ("online", "what you looked at"), ("crm", "your orders"),
        ):  # fmt: skip
            assert (words in read) is (source in said["basis"]["sources"])

    def flip(self, name: str) -> str:
        """Flip a switch; say who answers then."""
        return str(self.do(self.page.get_by_role("switch", name=name).click)["tier"])

    def look(self, number: int) -> str:
        """Look at one of the goods; say who answers then."""
        return str(self.do(self.page.locator("#goods .look").nth(number).click)["tier"])

    def buy(self, number: int) -> str:
        """Buy one of the goods; say who answers then."""
        return str(self.do(self.page.locator("#goods .buy").nth(number).click)["tier"])

    def channel(self, name: str) -> str:
        """Choose where it is shown; say who answers there."""
        return str(self.do(self.page.get_by_role("radio", name=name).check)["tier"])

    def kept(self) -> str:
        """The latest line of what the shop kept."""
        return self.page.locator("#log li").first.inner_text()


def _is_answer(response: Response) -> bool:
    return response.url.endswith("/recommendations")


@contextlib.contextmanager
def visiting(browser: Browser, service: Service, shop: Shop, **options: Any) -> Iterator[Visit]:
    """Somebody new, who came to the page a moment ago. Whatever goes wrong in the page fails the test."""
    context = browser.new_context(**options)
    context.set_default_timeout(10_000)
    page = context.new_page()
    visit = Visit(page, shop)
    wrong = visit.wrong
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda asked: None if asked.url.startswith(service.url) else wrong.append(asked.url))
    visit.do(lambda: page.goto(service.url))
    yield visit
    assert wrong == []
    assert context.cookies() == []
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    context.close()


@pytest.fixture
def visit(browser: Browser, service: Service, shop: Shop) -> Iterator[Visit]:
    """Somebody new in a wide window."""
    with visiting(browser, service, shop) as found:
        yield found


def test_the_tier_follows_the_permissions(visit: Visit) -> None:
    assert visit.answer["tier"] == "popular"  # a visit in which nothing has happened yet
    assert visit.look(0) == "session"
    assert visit.kept().endswith("not kept, for it is not permitted.")
    assert visit.flip("Online usage") == "online"  # which reads this visit, too
    assert visit.look(3) == "online"
    assert visit.kept().endswith("kept with your online data.")
    assert visit.channel("E-mail") == "popular"  # online history may not go into CRM
    assert visit.buy(4) == "popular"
    assert visit.kept().endswith("not kept, for it is not permitted.")
    assert visit.flip("Customer data") == "popular"
    assert visit.buy(6) == "crm"
    assert visit.kept().endswith("kept with your customer data.")
    assert visit.channel("Shop") == "online"  # two persons, as far as anybody knows
    assert visit.flip("Logged in") == "fused"
    assert visit.channel("E-mail") == "fused"
    assert visit.flip("Customer data") == "popular"
    assert visit.kept() == "Customer data: withdrawn, 1 row deleted."
    assert visit.channel("Shop") == "online"
    assert visit.flip("Online usage") == "session"
    assert visit.look(1) == "session"
    assert visit.kept().endswith("not kept, for it is not permitted.")


def test_what_is_recommended_changes_with_what_may_be_read(visit: Visit) -> None:
    regular = visit.page.get_by_role("button", name="A regular customer")
    visit.do(regular.click)
    visit.look(0)
    lists = {visit.answer["tier"]: visit.answer["items"]}
    for switch in ("Customer data", "Online usage"):
        tier = visit.flip(switch)
        lists[tier] = visit.answer["items"]
    visit.do(regular.click)
    visit.flip("Online usage")
    tier = visit.channel("E-mail")
    lists[tier] = visit.answer["items"]
    assert list(lists) == ["fused", "online", "session", "crm"]
    assert len({str(items) for items in lists.values()}) == 4
    whys = {tier: " ".join(item["why"] for item in items) for tier, items in lists.items()}
    assert {tier for tier, text in whys.items() if "you looked at" in text} == {"fused", "online"}
    assert "you bought or use" in whys["crm"]
    assert "you bought or use" not in whys["online"] + whys["session"]


def test_crm_data_stay_out_of_the_shop_without_the_online_permission(visit: Visit) -> None:
    visit.flip("Customer data")
    visit.flip("Logged in")
    assert visit.buy(2) == "popular"
    assert visit.look(5) == "session"
    assert visit.answer["basis"]["reason"].startswith("CRM permission only")
    assert visit.channel("Call centre") == "crm"


def test_another_person_is_a_stranger(visit: Visit) -> None:
    visit.do(visit.page.get_by_role("button", name="A regular customer").click)
    assert visit.answer["tier"] == "fused"
    visit.do(visit.page.get_by_role("button", name="Somebody new").click)
    assert visit.answer["tier"] == "popular"
    for name in ("Online usage", "Customer data", "Logged in"):
        assert visit.page.get_by_role("switch", name=name).get_attribute("aria-checked") == "false"


def test_the_basis_stands_in_plain_words(visit: Visit) -> None:
    visit.look(0)
    visit.page.get_by_text("What the answer rests on").click()
    basis = visit.page.inner_text("#basis")
    assert "nothing to recognise you by" in basis
    assert visit.answer["basis"]["bundle_digest"].removeprefix("sha256:")[:12] in basis
    assert visit.answer["basis"]["policy_version"] in basis
    visit.page.get_by_text("What decides the order").click()
    shown = visit.page.locator("#parameters li").all_inner_texts()
    assert shown == visit.answer["main_parameters"]


def test_the_keyboard_is_enough(visit: Visit) -> None:
    keyboard, page = visit.page.keyboard, visit.page
    page.get_by_role("switch", name="Online usage").focus()
    visit.do(lambda: keyboard.press("Space"))
    assert page.get_by_role("switch", name="Online usage").get_attribute("aria-checked") == "true"
    page.locator("#goods .look").first.focus()
    assert visit.do(lambda: keyboard.press("Enter"))["tier"] == "online"
    page.get_by_role("radio", name="Shop").focus()
    assert visit.do(lambda: keyboard.press("ArrowRight"))["basis"]["side"] == "online"
    assert page.get_by_role("radio", name="Ads").is_checked()


def test_a_service_that_fails_is_told_and_nothing_is_claimed(visit: Visit) -> None:
    page = visit.page
    page.route("**/permissions", _unavailable)
    page.get_by_role("switch", name="Online usage").click()
    page.wait_for_selector("#problem:not([hidden])")
    assert "not done: LedgerError" in page.inner_text("#problem")
    assert page.get_by_role("switch", name="Online usage").get_attribute("aria-checked") == "false"
    page.unroute("**/permissions")
    (told,) = visit.wrong
    assert "503" in told
    visit.wrong.clear()
    visit.flip("Online usage")
    assert page.locator("#problem").is_hidden()


def _unavailable(route: Route) -> None:
    route.fulfill(status=503, json={"detail": "not done: LedgerError; try again"})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1280])
def test_nothing_is_cut_off_and_texts_can_be_read(
    browser: Browser, service: Service, shop: Shop, scheme: str, width: int
) -> None:
    size = {"width": width, "height": 800}
    with visiting(browser, service, shop, color_scheme=scheme, viewport=size) as visit:
        visit.do(visit.page.get_by_role("button", name="A regular customer").click)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        faint = visit.page.evaluate(_CONTRASTS)
        assert {name: ratio for name, ratio in faint.items() if ratio < 4.5} == {}
        assert len(faint) > 8


# Contrast of texts with the nearest ground that is painted (WCAG 2.2, 1.4.3), by the browser's own colours.
_CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const linear = (v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  const light = (rgb) => rgb.reduce((sum, v, i) => sum + linear(v / 255) * [.2126, .7152, .0722][i], 0);
  const ratio = (element) => {
    const grounds = [];
    for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const [a, b] = [light(over(grounds)), light(over([...grounds, getComputedStyle(element).color]))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  };
  const found = {};
  for (const selector of ["h1", ".brand p", ".persons button[aria-pressed=true]", ".hint", ".ladder .here b",
      ".ladder .here span", ".ladder li:not(.here) span", "#tier", "#reason", "summary", ".why", ".price",
      ".visit", "footer p", ".channels input:checked + span", ".log li", ".category"]) {
    const element = document.querySelector(selector);
    if (element) found[selector] = ratio(element);
  }
  return found;
}"""


def test_no_id_of_the_persons_stands_in_the_metrics(visit: Visit, service: Service) -> None:
    visit.flip("Online usage")
    visit.look(0)
    text = visit.page.request.get(f"{service.url}/metrics").text()
    assert "consentier_answer_seconds_count" in text
    assert not re.search(r"\b[vc]-[0-9a-f]{16}\b|i0\d{4}", text)
