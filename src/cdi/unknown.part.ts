/** What to tell someone who names a device that is not there: what is, and which files may have meant to have it. */

import { quote } from "../sys/error.ts";
import { shown } from "./problem.ts";
import type { FileProblem } from "./spec-index.ts";

export interface Unknown {
  /** As it was asked for. */
  readonly asked: string;
  readonly kind: string;
  readonly name: string;
  /** The spec folders. */
  readonly dirs: readonly string[];
  /** The kinds that there are. */
  readonly kinds: readonly string[];
  /** The names of the devices of the kind that was asked for. */
  readonly names: readonly string[];
  readonly problems: readonly FileProblem[];
}

/** How many names or files an error lists. */
const LISTED_MAX = 8;

/** The two halves of the E_CDI_UNKNOWN_DEVICE message. */
export function explainUnknown(unknown: Unknown): { what: string; remedy: string } {
  const { asked, kind, kinds, name, names } = unknown;
  const dirs = unknown.dirs.map(shown).join(" and ");
  const bad = [...new Map(unknown.problems.map((p) => [p.path, `${shown(p.path)} (${p.code}: ${p.what})`])).values()];
  const unusable = bad.length === 0 ? "" : `; not used, so it may be in one of them: ${few(bad)}; see: sluice cdi list`;

  if (kinds.length === 0) {
    return {
      what: `there is no CDI device ${quote(asked)}: ${dirs} hold no usable spec file${unusable}`,
      remedy: bad.length === 0 ? "install the CDI spec of the device's vendor there" : "mend that file",
    };
  }
  const there =
    names.length === 0
      ? `no spec in ${dirs} has devices of the kind ${quote(kind)}; there are ${few(nearest(kind, kinds))}`
      : `of the kind ${kind} there are ${few(nearest(name, names))}`;
  return {
    what: `there is no CDI device ${quote(asked)}: ${there}${unusable}`,
    remedy: bad.length === 0 ? "name one of those, or install the spec that has it" : "mend the file that has it",
  };
}

function few(items: readonly string[]): string {
  const more = items.length - LISTED_MAX;
  return items.slice(0, LISTED_MAX).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

/** Sorted by how alike they are to what was asked for; those equally alike stay in order. */
function nearest(asked: string, names: readonly string[]): string[] {
  if (names.length <= LISTED_MAX) return [...names];
  const distances = new Map(names.map((name) => [name, distance(asked.slice(0, 64), name.slice(0, 64))]));
  return [...names].sort((a, b) => (distances.get(a) ?? 0) - (distances.get(b) ?? 0));
}

/** Edit distance (Levenshtein). */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const swap = (row[j - 1] ?? 0) + (a.charCodeAt(i - 1) === b.charCodeAt(j - 1) ? 0 : 1);
      next.push(Math.min(swap, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
