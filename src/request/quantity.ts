const SUFFIXES: Record<string, number> = {
  "": 1,
  m: 1e-3,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
};

/**
 * A Kubernetes quantity (resource.Quantity) as a number, fractions rounded up: `8Gi`, `500M`, `1.5e9`.
 * NaN where it is none, is negative, or is beyond 2^53.
 */
export function parseQuantity(text: string): number {
  const match = /^\+?(\d{1,18}(?:\.\d{0,9})?|\.\d{1,9})(?:[eE]([+-]?\d{1,2})|([a-zA-Z]{0,2}))$/.exec(text);
  if (match === null) return Number.NaN;
  const [, digits, exponent, suffix = ""] = match as unknown as [
    string,
    string,
    string | undefined,
    string | undefined,
  ];
  const scale = exponent === undefined ? SUFFIXES[suffix] : 10 ** Number(exponent);
  const value = scale === undefined ? Number.NaN : Math.ceil(Number(digits) * scale);
  return Number.isSafeInteger(value) ? value : Number.NaN;
}
