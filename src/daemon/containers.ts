/** How many containers have devices, told from their receipts: those of every door, not of sluiced alone. */

import * as fs from "node:fs";

/** What grantRequest grants (src/policy/grant.ts); receipts will name it when there is another. */
const MECHANISM = "exclusive";
/** Bytes. The door stands behind the container's id (src/plan/receipt.ts). */
const HEAD = 512;

/**
 * Counts receipts, and reads of each no more than its head, once.
 *
 * @param dir `/run/sluice/receipts`
 */
export class ContainerCount {
  readonly #dir: string;
  /** The door of each receipt, by file name; empty where it cannot be read. */
  #doors = new Map<string, string>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  count(): { door: string; mechanism: string; count: number }[] {
    const doors = new Map<string, string>();
    const counts = new Map<string, number>();
    for (const name of this.#names()) {
      const door = this.#doors.get(name) ?? this.#doorOf(name);
      if (door === "") continue; // gone meanwhile, or none of ours: looked at again the next time
      doors.set(name, door);
      counts.set(door, (counts.get(door) ?? 0) + 1);
    }
    this.#doors = doors;
    return [...counts].map(([door, count]) => ({ door, mechanism: MECHANISM, count }));
  }

  #names(): string[] {
    try {
      return fs.readdirSync(this.#dir).filter((name) => /^[^.].*\.json$/.test(name));
    } catch {
      return []; // no container has had a device yet
    }
  }

  #doorOf(name: string): string {
    let fd: number | undefined;
    try {
      fd = fs.openSync(
        `${this.#dir}/${name}`,
        fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK,
      );
      const bytes = Buffer.alloc(HEAD);
      const head = bytes.toString("utf8", 0, fs.readSync(fd, bytes, 0, HEAD, 0));
      return /^\{"version":1,"id":"[^"\\]*","door":"([a-z-]{1,20})",/.exec(head)?.[1] ?? "";
    } catch {
      return "";
    } finally {
      if (fd !== undefined) fs.closeSync(fd);
    }
  }
}
