/** Elements of the edge's own pages. Nothing here makes HTML of text: text stays text. */

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a child is a node, text, or null for none. */
export const make = (name, attributes, ...children) =>
  filled(document.createElement(name), attributes, children);

/** The same for an element of SVG. */
export const makeSvg = (name, attributes, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}
