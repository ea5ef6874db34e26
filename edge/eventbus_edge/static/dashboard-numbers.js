/** Computes and formats the dashboard's numbers from samples of the nodes. Pure. */

const WINDOW = 10; // samples, one per second, of which percentiles are computed
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const PARTS = [0.5, 0.95, 0.99];

export const MOST_POINTS = 300;

/** Values over time; the last MOST_POINTS are kept, and a pause is a gap. */
export class Series {
  constructor(count) {
    this.columns = Array.from({ length: count + 1 }, () => []);
  }

  add(seconds, ...values) {
    [seconds, ...values].forEach((value, position) => {
      const column = this.columns[position];
      column.push(value ?? null);
      if (column.length > MOST_POINTS) column.shift();
    });
  }

  /** Add older points, and those that were missed: all that lie outside of the points so far. */
  fill(points) {
    const times = this.columns[0];
    const isOlder = ([seconds]) => !times.length || seconds < times[0];
    const isMissed = ([seconds]) => times.length && seconds > times.at(-1);
    const own = times.map((_, i) => this.columns.map((column) => column[i]));
    const all = [...points.filter(isOlder), ...own, ...points.filter(isMissed)];
    this.columns = this.columns.map((_, i) => all.slice(-MOST_POINTS).map((point) => point[i]));
  }

  pause(seconds) {
    const last = this.columns[0].at(-1);
    if (last !== undefined) this.add(Math.max(seconds, last + 0.001));
  }
}

/** Rates and percentiles from the counts of two samples; a restarted node counts from 0. */
export class Rates {
  #before = new Map();
  #latencies = [];

  /** @returns {{in: number|null, out: number|null, percentiles: (number|null)[], nodes: Map}} */
  take(sample) {
    const nodes = new Map();
    const delivered = sample.bounds.map(() => 0).concat(0);
    for (const node of sample.nodes) {
      const before = this.#before.get(node.id);
      const seconds = before ? node.at - before.at : 0;
      if (seconds <= 0) continue;
      const rate = (name) => Math.max(0, node[name] - before[name]) / seconds;
      nodes.set(node.id, { in: rate("messages_in"), out: rate("messages_out"), bytes: rate("bytes_out") });
      node.latencies.forEach((count, i) => {
        delivered[i] += Math.max(0, count - before.latencies[i]);
      });
    }
    this.#before = new Map(sample.nodes.map((node) => [node.id, node]));
    this.#latencies.push(delivered);
    if (this.#latencies.length > WINDOW) this.#latencies.shift();
    const counts = delivered.map((_, i) => this.#latencies.reduce((sum, each) => sum + each[i], 0));
    const sum = (name) => {
      if (!nodes.size) return null;
      return [...nodes.values()].reduce((total, each) => total + each[name], 0);
    };
    return {
      nodes,
      in: sum("in"),
      out: sum("out"),
      bytes: sum("bytes"),
      percentiles: PARTS.map((part) => percentile(counts, sample.bounds, part)),
    };
  }

  forget() {
    this.#before = new Map();
    this.#latencies = [];
  }
}

/** Points of the last minutes, up to the time `now`: `[seconds, connections, in, out, percentiles]`. */
export function past({ history, bounds }, now) {
  const { step_s: step, steps } = history;
  const window = Math.round(WINDOW / step);
  return steps.map(([connections, received, sent], i) => {
    const latencies = steps.slice(Math.max(0, i + 1 - window), i + 1).map((each) => each[3]);
    const counts = bounds
      .map(() => 0)
      .concat(0)
      .map((_, bucket) => latencies.reduce((sum, each) => sum + (each[bucket] ?? 0), 0));
    const percentiles = PARTS.map((part) => percentile(counts, bounds, part));
    return [now - (steps.length - i) * step, connections, received / step, sent / step, percentiles];
  });
}

/** Like Prometheus: linear within a bucket; values beyond the last bound count as that bound. */
export function percentile(counts, bounds, part) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return null;
  let left = part * total;
  for (let i = 0; i < bounds.length; i++) {
    const low = i ? bounds[i - 1] : 0;
    if (left <= counts[i]) return low + ((bounds[i] - low) * left) / counts[i];
    left -= counts[i];
  }
  return bounds.at(-1);
}

export const whole = (number) => number.toLocaleString("en");

export function rate(number) {
  if (number === null || number === undefined) return "–";
  if (number >= 10_000) return COMPACT.format(number);
  if (number >= 100) return whole(Math.round(number));
  return number ? String(Number(number.toFixed(number < 1 ? 2 : 1))) : "0";
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(count) {
  if (!count) return "–";
  if (count < 1000) return `${Math.round(count)} B`;
  const step = Math.min(3, Math.floor(Math.log10(count) / 3));
  const scaled = count / 1000 ** step;
  return `${scaled < 10 ? scaled.toFixed(1) : Math.round(scaled)} ${["", "kB", "MB", "GB"][step]}`;
}

export const several = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;
