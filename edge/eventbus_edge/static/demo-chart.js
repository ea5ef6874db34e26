/**
 * A small area chart in SVG, with colours of the style sheet. It begins with a short time span, to
 * show something at once, and grows to the last 90 seconds.
 */

import { make, makeSvg } from "./elements.js";

const FIRST_WINDOW_MS = 15_000;
const WINDOW_MS = 90_000;
const GAP_MS = 5_000; // a longer pause is shown as a gap

export class Chart {
  #name;
  #format;
  #max;
  #points = [];
  #drawing = false;
  #parts = {};

  /** `max` is the upper end of the scale; without it, the scale follows the values. */
  constructor(element, { name, format, max }) {
    this.#name = name;
    this.#format = format;
    this.#max = max;
    this.element = element;
    element.append(this.#build());
    const readout = make("output", { hidden: "" });
    element.append(readout);
    this.#parts.readout = readout;
    element.addEventListener("pointermove", (event) => this.#point(event));
    element.addEventListener("pointerleave", () => this.#unpoint());
  }

  add(time, value) {
    this.#points.push({ time, value });
    while (this.#points[0].time < time - WINDOW_MS) this.#points.shift();
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => this.#draw());
  }

  get values() {
    return this.#points.map((point) => point.value);
  }

  #build() {
    const svg = makeSvg("svg", {
      viewBox: "0 0 100 100",
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `${this.#name}: no measurement yet`,
    });
    this.#parts = {
      svg,
      area: makeSvg("path", { class: "area" }),
      line: makeSvg("path", { class: "line" }),
      cursor: makeSvg("path", { class: "cursor" }),
    };
    const rules = makeSvg("path", { class: "rule", d: "M0 50H100M0 99.5H100" });
    svg.append(rules, this.#parts.area, this.#parts.line, this.#parts.cursor);
    return svg;
  }

  get #end() {
    return this.#points.at(-1)?.time ?? 0;
  }

  get #span() {
    return Math.max(FIRST_WINDOW_MS, this.#end - (this.#points[0]?.time ?? 0));
  }

  #x(time) {
    return 100 - ((this.#end - time) / this.#span) * 100;
  }

  #draw() {
    this.#drawing = false;
    const highest = Math.max(...this.values);
    const scale = this.#max ?? Math.max(highest * 1.25, 1e-9);
    const runs = [];
    let before = -Infinity;
    for (const { time, value } of this.#points) {
      if (time - before > GAP_MS) runs.push([]);
      const y = 98 - Math.min(value / scale, 1) * 94;
      runs.at(-1).push(`${this.#x(time).toFixed(2)} ${y.toFixed(2)}`);
      before = time;
    }
    const lines = runs.map((run) => `M${run.join("L")}`);
    this.#parts.line.setAttribute("d", lines.join(""));
    const areas = runs.map(
      (run, i) => `${lines[i]}L${run.at(-1).split(" ")[0]} 100L${run[0].split(" ")[0]} 100Z`,
    );
    this.#parts.area.setAttribute("d", areas.join(""));
    const now = this.#format(this.#points.at(-1).value);
    const seconds = Math.round(this.#span / 1000);
    const label = `${this.#name}, the last ${seconds} seconds: now ${now}, highest ${this.#format(highest)}`;
    this.#parts.svg.setAttribute("aria-label", label);
  }

  #point(event) {
    if (!this.#points.length) return;
    const box = this.element.getBoundingClientRect();
    const part = (event.clientX - box.left) / box.width;
    const time = this.#end - (1 - part) * this.#span;
    const distance = (point) => Math.abs(point.time - time);
    const near = this.#points.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    const x = this.#x(near.time);
    this.#parts.cursor.setAttribute("d", `M${x} 0V100`);
    const { readout } = this.#parts;
    const ago = Math.round((this.#end - near.time) / 1000);
    readout.textContent = `${this.#format(near.value)}, ${ago ? `${ago} s ago` : "now"}`;
    readout.hidden = false;
    const room = box.width - readout.offsetWidth - 8;
    readout.style.left = `${Math.max(8, Math.min(room, (x / 100) * box.width + 8))}px`;
  }

  #unpoint() {
    this.#parts.cursor.setAttribute("d", "");
    this.#parts.readout.hidden = true;
  }
}
