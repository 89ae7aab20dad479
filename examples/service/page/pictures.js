// Pictures of the goods, drawn from a category and a title: no image is loaded from anywhere.

const SVG = "http://www.w3.org/2000/svg";

// One line drawing per category, in a field of 48 by 48.
const DRAWINGS = {
  bicycles: "M14 32a7 7 0 1 0 .1 0M34 32a7 7 0 1 0 .1 0M14 32l7-14h9l4 14M21 18l5 14h-12M19 15h5M30 18l-1-4h4",
  books: "M24 15c-4-3-9-3-13-2v20c4-1 9-1 13 2 4-3 9-3 13-2V13c-4-1-9-1-13 2zM24 15v20M15 19h5M15 24h5M28 19h5M28 24h5",
  camping: "M24 11L8 37h32zM24 11l-2-3M24 11l2-3M24 22l-6 15h12z",
  groceries: "M10 20h28l-3 17H13zM16 20l6-10M32 20l-6-10M18 26v6M24 26v6M30 26v6",
  health: "M18 18h12v3l3 4v13H15V25l3-4zM20 18v-6h8v6M24 27v7M20.500 30.500h7",
  pets: "M24 25c-5 0-9 5-9 8 0 4 5 4 9 3 4 1 9 1 9-3 0-3-4-8-9-8zM14 20a3 4 0 1 0 .1 0M34 20a3 4 0 1 0 .1 0M20 12a3 4 0 1 0 .1 0M28 12a3 4 0 1 0 .1 0",
  sports: "M24 10a14 14 0 1 0 .1 0M24 18l6 4.500-2.300 7h-7.400l-2.300-7zM24 10v8M37 20l-7 2.500M32 35l-4.300-5.500M16 35l4.300-5.500M11 20l7 2.500",
  stationery: "M31 10l7 7-19 19-9 2 2-9zM27 14l7 7M12 29l7 7",
  toys: "M13 24h22v13H13zM17 24v-6h6v6M25 24v-6h6v6M21 18v-6h6v6M24 24v13",
};
const TAG = "M10 12h12l16 16-12 12-16-16zM16 18a1 1 0 1 0 .1 0";

function hash(text) {
  let value = 7;
  for (const letter of text) value = (value * 31 + letter.codePointAt(0)) % 9973;
  return value;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** A picture of one of the goods: its colour follows from its title, its drawing from its category. */
export function picture(product) {
  const number = hash(product.title);
  const hue = (number * 47) % 360;
  const svg = shape("svg", { viewBox: "0 0 96 72", "aria-hidden": "true", preserveAspectRatio: "xMidYMid slice", class: "picture" });
  svg.style.setProperty("--hue", String(hue));
  svg.append(
    shape("rect", { width: 96, height: 72, class: "ground" }),
    shape("circle", { cx: 12 + (number % 72), cy: 8 + (number % 53), r: 22 + (number % 14), class: "sun" }),
    shape("path", {
      d: `M0 ${56 + (number % 7)} Q ${24 + (number % 20)} ${46 + (number % 9)} 48 56 T 96 ${52 + (number % 8)} V72 H0z`,
      class: "hill",
    }),
    shape("path", { d: DRAWINGS[product.category] ?? TAG, class: "drawing", transform: "translate(24 11)" }),
  );
  return svg;
}
