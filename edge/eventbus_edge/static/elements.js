/** Creates the elements of the edge's own pages. Text is never parsed as HTML. */

export const byId = (id) => document.getElementById(id);

/** Create an element with attributes and children: nodes, texts, or null, which is skipped. */
export const make = (name, attributes, ...children) =>
  filled(document.createElement(name), attributes, children);

/** Create an SVG element. */
export const makeSvg = (name, attributes, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}
