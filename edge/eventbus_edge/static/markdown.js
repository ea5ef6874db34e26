/** Shows the Markdown of docstrings as elements: text never becomes HTML by itself. */

import { make } from "./elements.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}#{1,6} +(.+?)(?: +#+)?$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)]) +(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const INLINE =
  /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)\*\*|\*(?=[^\s*])(.+?)\*|(?<!\w)_(?=[^\s_])(.+?)_(?!\w)|\[([^\]]+)\]\((\S+?)\)|<(https?:\/\/[^\s<>]+)>/s;

/** The blocks of a text: paragraphs, lists, headings, quotes and code. */
export function markdown(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  while (lines.length) {
    const line = lines[0];
    if (!line.trim()) lines.shift();
    else if (FENCE.test(line)) blocks.push(fenced(lines));
    else if (/^ {4}/.test(line)) blocks.push(code(take(lines, (next) => /^ {4}|^\s*$/.test(next)).map((each) => each.slice(4))));
    else if (HEADING.test(line)) blocks.push(make("p", { class: "doc" }, make("b", {}, ...inline(HEADING.exec(lines.shift())[1]))));
    else if (QUOTE.test(line)) blocks.push(make("blockquote", {}, ...markdown(take(lines, (next) => QUOTE.test(next)).map((each) => each.replace(QUOTE, "")).join("\n"))));
    else if (ITEM.test(line)) blocks.push(list(lines));
    else blocks.push(make("p", { class: "doc" }, ...inline(take(lines, isParagraph).map((each) => each.trim()).join(" "))));
  }
  return blocks;
}

/** Remove the first lines while `fits` is true, at least one; returns them. */
function take(lines, fits) {
  const taken = [lines.shift()];
  while (lines.length && fits(lines[0])) taken.push(lines.shift());
  return taken;
}

const isParagraph = (line) =>
  line.trim() !== "" && ![FENCE, HEADING, ITEM, QUOTE].some((start) => start.test(line));

function fenced(lines) {
  const fence = FENCE.exec(lines.shift())[1];
  const content = [];
  while (lines.length) {
    const line = lines.shift();
    if (line.trim().startsWith(fence)) break;
    content.push(line);
  }
  return code(content);
}

const code = (lines) => make("pre", { tabindex: "0" }, make("code", {}, lines.join("\n").trimEnd()));

function list(lines) {
  const isOrdered = /\d/.test(ITEM.exec(lines[0])[2]);
  const items = [];
  while (lines.length) {
    const match = ITEM.exec(lines[0]);
    if (match === null || /\d/.test(match[2]) !== isOrdered) break;
    const width = match[1].length + match[2].length + 1;
    lines[0] = match[3];
    const content = take(lines, (next) => isParagraph(next) || /^ {2,}\S/.test(next));
    const nested = content.map((each, position) =>
      position ? each.replace(new RegExp(`^ {1,${width}}`), "") : each,
    );
    const [first, ...rest] = markdown(nested.join("\n"));
    items.push(make("li", {}, ...(first?.tagName === "P" ? first.childNodes : [first ?? ""]), ...rest));
    while (lines.length && !lines[0].trim() && ITEM.test(lines[1] ?? "")) lines.shift();
  }
  return make(isOrdered ? "ol" : "ul", { class: "doc" }, ...items);
}

/** Text with code, emphasis and links; links lead only to http, https and mailto. */
function inline(text) {
  const parts = [];
  for (let match; (match = INLINE.exec(text)) !== null; ) {
    const [whole, , literal, strong, star, underscore, label, target, address] = match;
    if (match.index) parts.push(text.slice(0, match.index));
    if (literal !== undefined) parts.push(make("code", {}, literal.replace(/^ (.*\S.*) $/, "$1")));
    else if (strong !== undefined) parts.push(make("strong", {}, ...inline(strong)));
    else if (label !== undefined) parts.push(link(target, inline(label), whole));
    else if (address !== undefined) parts.push(link(address, [address], whole));
    else parts.push(make("em", {}, ...inline(star ?? underscore)));
    text = text.slice(match.index + whole.length);
  }
  return [...parts, text].filter((part) => part !== "");
}

const link = (target, label, whole) =>
  /^(https?:\/\/|mailto:)/i.test(target) ? make("a", { href: target, rel: "noreferrer" }, ...label) : whole;
