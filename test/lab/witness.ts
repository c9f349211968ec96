/**
 * What Sluice changes, seen from both sides: a witness that the engine calls in Sluice's place, and one that Sluice
 * calls in the low-level runtime's, each of which writes down the config.json that it is given.
 *
 *     engine -> witness "before" -> sluice-runtime -> witness "after" -> runc or crun
 */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import type { Machine } from "./machine.ts";

const SCRIPT = path.join(path.dirname(fileURLToPath(import.meta.url)), "witness.sh");
const FOLDER = "/var/lib/witness";

/** The runtime for an engine's settings. */
export const BEFORE = "/usr/local/bin/witness-before";
/** The runtime for Sluice's settings. */
export const AFTER = "/usr/local/bin/witness-after";
/** The engine's runtime where Sluice has no part: a witness in front of the low-level runtime. */
export const ALONE = "/usr/local/bin/witness-alone";

export type LowLevel = "runc" | "crun";

/** One start of a container. */
export interface Creation {
  /** config.json as the engine made it, byte for byte. */
  before: string;
  /** config.json as the low-level runtime got it; undefined where Sluice never called that. */
  after: string | undefined;
  /** The runtime's arguments, which are the same on both sides. */
  arguments: { before: string[]; after: string[] | undefined };
}

/** Puts the witnesses on a machine. `lowLevel` is what the inner one becomes. */
export function installWitnesses(machine: Machine, lowLevel: LowLevel = "runc"): void {
  const script = fs.readFileSync(SCRIPT, "utf8");
  const install = (file: string, witness: string, next: string): void => {
    const settings = `WITNESS=${witness} FOLDER=${FOLDER} NEXT=${next}\n`;
    machine.write(file, script.replace("set -eu\n", `set -eu\n${settings}`), 0o755);
  };
  install(BEFORE, "before", "/usr/bin/sluice-runtime");
  install(AFTER, "after", `/usr/bin/${lowLevel}`);
  install(ALONE, "alone", `/usr/bin/${lowLevel}`);
  machine.must("mkdir", "-m", "1777", "-p", FOLDER);
}

/** The starts of a container that went through Sluice, in order. `id` is the OCI runtime's. */
export function creations(machine: Machine, id: string): Creation[] {
  const found: Creation[] = [];
  for (let n = 1; ; n++) {
    const before = record(machine, `${id}.${n}.before`);
    if (before === undefined) return found;
    const after = record(machine, `${id}.${n}.after`);
    found.push({
      before: before.config,
      after: after?.config,
      arguments: { before: before.arguments, after: after?.arguments },
    });
  }
}

/** The config.json of each start of a container that went through `ALONE`. */
export function creationsAlone(machine: Machine, id: string): string[] {
  const found: string[] = [];
  for (let n = 1; ; n++) {
    const alone = record(machine, `${id}.${n}.alone`);
    if (alone === undefined) return found;
    found.push(alone.config);
  }
}

/** An engine, as far as it is looked at here. */
interface On {
  readonly machine: Machine;
}

/** The only start of a container so far. */
export function creation({ machine }: On, id: string): Creation {
  const all = creations(machine, id);
  assert.equal(all.length, 1);
  return all[0] as Creation;
}

/** Asserts that a container was started as the engine would have it. */
export function assertUnchanged(on: On, id: string): void {
  const { before, after, arguments: args } = creation(on, id);
  assert.equal(after, before);
  assert.deepEqual(args.after, args.before);
}

/** Asserts that nothing was added but the stamp: all edits were there. Mounts may be ordered anew. */
export function assertStamped({ before, after }: Creation): void {
  const [was, is] = [JSON.parse(before), JSON.parse(after ?? "")];
  assert.match(is.annotations["sluice.dev/plan"], /^[0-9a-f]{64}$/);
  delete is.annotations["sluice.dev/plan"];
  for (const config of [was, is]) {
    config.mounts.sort((a: { destination: string }, b: { destination: string }) =>
      a.destination < b.destination ? -1 : 1,
    );
  }
  assert.deepEqual(is, was);
}

/** The names of the receipts' files. @param state where their folder is, root's or a user's */
export function receipts({ machine }: On, state = "run/sluice"): string[] {
  const dir = path.join(machine.dir, state, "receipts");
  return fs.existsSync(dir) ? fs.readdirSync(dir).sort() : [];
}

function record(machine: Machine, name: string): { config: string; arguments: string[] } | undefined {
  const dir = path.join(machine.dir, FOLDER, name);
  if (!fs.existsSync(dir)) return undefined;
  return {
    config: fs.readFileSync(path.join(dir, "config.json"), "utf8"),
    arguments: fs.readFileSync(path.join(dir, "arguments"), "utf8").split("\n").slice(0, -1),
  };
}
