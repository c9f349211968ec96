import type { Stat } from "../sys/sys.ts";
import type { Look } from "./look.ts";

/** A character device node of the machine. */
export interface Node {
  readonly path: string;
  readonly major: number;
  readonly minor: number;
  /** Owner and group, which decide who may open it, where they are not root's. */
  readonly uid?: number;
  readonly gid?: number;
}

/** The node at a path, where one is. */
export function nodeAt(look: Look, path: string): Node | undefined {
  const stat: Stat | undefined = look.stat(path);
  if (stat?.kind !== "char") return undefined;
  const { major, minor, uid, gid } = stat;
  return { path, major, minor, ...(uid === 0 ? {} : { uid }), ...(gid === 0 ? {} : { gid }) };
}

/** The nodes of a folder whose names have a form. */
export function nodesIn(look: Look, folder: string, form: RegExp): Node[] {
  return look
    .names(folder)
    .filter((name) => form.test(name))
    .flatMap((name) => nodeAt(look, `${folder}/${name}`) ?? []);
}

/** The numbers that the kernel has given to drivers of character devices, by their names (proc(5), /proc/devices). */
export function readMajors(look: Look): Map<string, number> {
  const majors = new Map<string, number>();
  const [characters = ""] = (look.text("/proc/devices") ?? "").split(/^Block devices:/m);
  for (const [, major, name] of characters.matchAll(/^ *(\d{1,9}) (.+)$/gm)) {
    // A driver may have several; the first is the one that its nodes have.
    if (!majors.has(name as string)) majors.set(name as string, Number(major));
  }
  return majors;
}
