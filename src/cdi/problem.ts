/** What can be wrong with a spec, as data: one list for people, for `--json` and for the index. */

import { quote, SluiceError } from "../sys/error.ts";

export interface Problem {
  /** `E_CDI_...`, as in an error. */
  readonly code: string;
  /** Where in the spec, as a JSON pointer (RFC 6901): `/devices/0/containerEdits/env/1`; empty for the whole file. */
  readonly pointer: string;
  /** As in `SluiceError`: no full stop. */
  readonly what: string;
  readonly remedy: string;
}

/** A problem of a file or folder as a whole. */
export function wholeFile(code: string, what: string, remedy: string): Problem {
  return { code, pointer: "", what, remedy };
}

/** A place in a text at which it stops being JSON or YAML. */
export interface SyntaxFault {
  /** From 1. */
  readonly line: number;
  /** From 1, in UTF-16 code units. */
  readonly column: number;
  readonly what: string;
}

/** A value that the checks went through. */
export interface Checked<T> {
  /** `undefined` if there are problems. */
  readonly spec: T | undefined;
  /**
   * Whether the checked value itself is such a spec already. It is not where keys differ from the specification's in
   * case, or fields are `null` or empty texts that stand for absent ones; `spec` has those put right.
   */
  readonly canonical: boolean;
  /** At most 20. */
  readonly problems: readonly Problem[];
}

/** A path in a message: as it is where that is safe and clear. */
export function shown(path: string): string {
  return /^[!-~]+$/.test(path) ? path : quote(path, 300);
}

/** The error for a file with problems: the first one in full, and how many more there are. */
export function problemError(path: string, problems: readonly Problem[]): SluiceError {
  const [first, ...rest] = problems;
  if (first === undefined) throw new RangeError("a file without problems has no error");
  const place = first.pointer === "" ? shown(path) : `${shown(path)} at ${first.pointer}`;
  const more = rest.length === 0 ? "" : ` (and ${rest.length} more ${rest.length === 1 ? "problem" : "problems"})`;
  return new SluiceError(first.code, `CDI spec ${place}: ${first.what}${more}`, first.remedy);
}
