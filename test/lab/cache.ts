/** Where the lab keeps what takes long to make: roots with engines, container images, kernels. */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";

/** Where the lab lies: $SLUICE_LAB, else /var/cache/sluice-lab. Outside the checkout, kept between runs. */
export const LAB: string = process.env["SLUICE_LAB"] || "/var/cache/sluice-lab";

/** What was made from a recipe that nobody has used for this long makes room for what is made from the new one. */
const UNUSED_MS = 7 * 24 * 3600 * 1000;

/**
 * Holds an exclusive lock on the file while `act` runs; others wait. The lock belongs to our open file, so it goes with
 * our process, however that ends.
 */
export function locked<T>(file: string, act: () => T): T {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  const fd = fs.openSync(file, "w");
  try {
    // flock(1) locks the open file that it shares with us, as the shell's `flock 9` does.
    const r = spawnSync("flock", ["--exclusive", "3"], { stdio: ["ignore", "ignore", "inherit", fd] });
    if (r.status !== 0) throw new Error(`${file} cannot be locked: flock ended with ${r.status ?? r.error}`);
    return act();
  } finally {
    fs.closeSync(fd);
  }
}

/** Where `cached` puts what is made under this name from this key, whether it is there yet or not. */
export function placeOf(name: string, key: unknown): string {
  const hash = createHash("sha256")
    .update(JSON.stringify([process.arch, key]))
    .digest("hex");
  return path.join(LAB, `${name}-${hash.slice(0, 12)}`);
}

/**
 * A folder of the lab, made by `make` where it is not there yet. It is made aside and renamed into place, so it is
 * whole or not there. Two at once wait for each other. The key (JSON: suite, packages, version of the recipe) is part
 * of the folder's name, so that two checkouts with different recipes do not take it from each other.
 *
 * @returns the folder's path. It is shared: nobody may change what is in it
 */
export function cached(name: string, key: unknown, make: (dir: string) => void): string {
  const place = placeOf(name, key);
  if (fs.existsSync(place)) return touched(place);
  return locked(path.join(LAB, `.${name}.lock`), () => {
    if (fs.existsSync(place)) return touched(place);
    const begun = Date.now();
    process.stderr.write(`lab: making ${name}\n`);
    removeLeftovers(name);
    const aside = path.join(LAB, `.${name}.new`);
    fs.mkdirSync(aside, { mode: 0o755 });
    make(aside);
    fs.renameSync(aside, place);
    process.stderr.write(`lab: made ${name} in ${((Date.now() - begun) / 1000).toFixed(1)} s\n`);
    return place;
  });
}

/** Notes that the folder is in use. */
function touched(place: string): string {
  const now = new Date();
  fs.utimesSync(place, now, now);
  return place;
}

/** What a killed run left half made, and what was made from recipes that nobody uses any more. */
function removeLeftovers(name: string): void {
  const versions = new RegExp(`^${name.replace(/[^a-z0-9]/g, "\\$&")}-[0-9a-f]{12}$`);
  for (const entry of fs.readdirSync(LAB)) {
    const file = path.join(LAB, entry);
    const stale = versions.test(entry) && Date.now() - fs.statSync(file).mtimeMs > UNUSED_MS;
    if (!stale && !entry.startsWith(`.${name}.new`)) continue;
    // Renamed first: what still writes there (a tar that outlived a killed run) must not write into the new one.
    const doomed = path.join(LAB, `.${name}.old-${process.pid}`);
    fs.renameSync(file, doomed);
    fs.rmSync(doomed, { recursive: true, force: true, maxRetries: 10 });
  }
}
