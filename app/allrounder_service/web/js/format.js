// Numbers as people read them.

const SPACE = "\u00a0";

export const percent = (ratio, digits = 0) => `${(100 * ratio).toFixed(digits)}%`;

/** In the unit of `beside`, so that two figures can be compared at a glance. */
export function flops(count, beside = count) {
  const [size, unit] = [[1e12, "T"], [1e9, "G"], [1e6, "M"]].find(([limit]) => beside >= limit) ?? [1e3, "k"];
  const value = count / size;
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)}${SPACE}${unit}FLOP`;
}

export function milliseconds(ms) {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)}${SPACE}s`;
  return `${ms.toFixed(ms < 10 ? 1 : 0)}${SPACE}ms`;
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

export const sameAnswer = (one, other) => one.trim() === other.trim();
