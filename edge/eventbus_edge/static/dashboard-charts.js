/** Line charts over time, drawn by uPlot with colours of the style sheet. */

import { MOST_POINTS, Series } from "./dashboard-numbers.js";

const HEIGHT = 190;
const SHORTEST_S = 60;
const WHOLE = [1, 10, 100, 1_000, 10_000, 100_000].flatMap((step) => [step, 2 * step, 5 * step]);
const { uPlot } = globalThis;

export class Chart {
  #element;
  #options;
  #plot = null;
  #describedAt = 0;

  /** `lines` are `{label, color}`; a color is a custom CSS property. `format` formats a value. */
  constructor(element, { title, lines, format, least = 1, isWhole = false }) {
    this.#element = element;
    this.#options = { title, lines, format, least, isWhole };
    this.series = new Series(lines.length);
    new ResizeObserver(() => this.#draw()).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw(true));
  }

  add(seconds, ...values) {
    this.series.add(seconds, ...values);
    this.#draw();
    if (seconds - this.#describedAt >= 5) this.#describe(seconds, values);
  }

  fill(points) {
    this.series.fill(points);
  }

  pause(seconds) {
    this.series.pause(seconds);
    this.#draw();
  }

  #describe(seconds, values) {
    this.#describedAt = seconds;
    const { title, lines, format } = this.#options;
    const now = lines.map(({ label }, i) => `${label} ${format(values[i])}`).join(", ");
    this.#element.setAttribute("aria-label", `${title} over the last minutes; now: ${now}`);
  }

  #draw(rebuild = false) {
    const width = this.#element.clientWidth;
    if (!width) return;
    if (rebuild) {
      this.#plot?.destroy();
      this.#plot = null;
    }
    if (this.#plot === null) {
      this.#plot = new uPlot(this.#configuration(width), this.series.columns, this.#element);
    } else {
      if (this.#plot.width !== width) this.#plot.setSize({ width, height: HEIGHT });
      this.#plot.setData(this.series.columns);
    }
    // Without a pointer over it, the legend shows the latest values.
    const last = this.series.columns[0].length - 1;
    if (this.#plot.cursor.idx == null && last >= 0) this.#plot.setLegend({ idx: last });
  }

  #configuration(width) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const { lines, format, least, isWhole } = this.#options;
    const axis = {
      stroke: color("muted"),
      font: "12px system-ui, sans-serif",
      grid: { stroke: color("line"), width: 1 },
      ticks: { show: false },
    };
    return {
      width,
      height: HEIGHT,
      padding: [10, 20, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      legend: { live: true },
      scales: {
        x: {
          range: (_, low, high) => {
            const length = Math.min(MOST_POINTS, Math.max(SHORTEST_S, high - low));
            return [high - length, high];
          },
        },
        y: { range: (_, low, high) => [0, Math.max(least, (high ?? 0) * 1.15)] },
      },
      axes: [
        { ...axis, space: 70, size: 28, values: "{HH}:{mm}:{ss}" },
        {
          ...axis,
          space: 36,
          size: 56,
          values: (_, splits) => splits.map((value) => format(value)),
          ...(isWhole && { incrs: WHOLE }),
        },
      ],
      series: [
        { label: "at", value: "{HH}:{mm}:{ss}" },
        ...lines.map(({ label, color: name, fill }) => ({
          label,
          stroke: color(name),
          width: 2,
          fill: fill ? `color-mix(in srgb, ${color(name)} 12%, transparent)` : undefined,
          points: { show: false },
          value: (_, value) => (value === null ? "–" : format(value)),
        })),
      ],
    };
  }
}
