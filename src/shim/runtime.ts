import { readBundle } from "../oci/bundle.ts";
import { type CommandLine, parseCommandLine } from "../oci/cmdline.ts";
import { inject } from "../plan/inject.ts";
import { type Machine, openDefaultMachine, openMachine } from "../plan/machine.ts";
import { Receipts } from "../plan/receipt.ts";
import { stackOf } from "../sys/enter.ts";
import { errorLine, OsError, SluiceError } from "../sys/error.ts";
import { EXIT } from "../sys/exit.ts";
import type { Sys } from "../sys/sys.ts";
import { rfc3339 } from "../sys/time.ts";
import { findRuntime } from "./low-level.ts";
import { initHasEnded } from "./runc-state.ts";

/**
 * The OCI runtime in front of runc or crun (DESIGN.md section 2): gives the container of a `create`, `run` or `restore`
 * what it asks for, by editing its config.json, and then becomes the low-level runtime with the very arguments,
 * environment and descriptors that it was called with. Everything else goes straight on.
 *
 * Only where something is left to do afterwards (the receipt of a container that lives is to be released) does it stay,
 * as the parent.
 */
export function runtime(sys: Sys): number {
  // Called as `sluice runtime ...` or, under the name sluice-runtime, with the runtime's arguments at once.
  const from = /(?:^|\/)sluice-runtime$/.test(sys.args[0] ?? "") ? 1 : 2;
  const line = parseCommandLine(sys.args.slice(from));
  try {
    const machine = open(sys, line);
    const lowLevel = findRuntime(sys, machine.settings.runtime.runtimes);
    if (!prepare(machine, line)) return sys.exec(lowLevel, from);
    const code = sys.run(lowLevel, from);
    if (code === 0 || line.command === "run") {
      new Receipts(machine.sys, machine.stateDir).release(line.id ?? "", line.root ?? "");
    }
    return code;
  } catch (thrown) {
    log(sys, line, thrown);
    sys.err(`${errorLine(thrown)}\n${stackOf(thrown)}`);
    return thrown instanceof SluiceError ? EXIT.failed : EXIT.internal;
  }
}

/** The commands that start a container from a bundle's config.json. */
const STARTING = /^(?:create|run|restore)$/;

/** Broken settings keep containers from starting, not from being looked at, stopped and deleted. */
function open(sys: Sys, line: CommandLine): Machine {
  try {
    return openMachine(sys);
  } catch (thrown) {
    if (!(thrown instanceof SluiceError) || STARTING.test(line.command ?? "")) throw thrown;
    return openDefaultMachine(sys);
  }
}

/**
 * Does what must be done before the low-level runtime acts. Whether there is also something to do after it: with
 * `delete` of a container that lives, and with a `run` in the foreground, which deletes its container by itself, nobody
 * calling `delete`.
 */
function prepare(machine: Machine, line: CommandLine): boolean {
  if (line.help) return false;
  switch (line.command) {
    case "create":
    case "restore":
      start(machine, line);
      return false;
    case "run":
      return start(machine, line) && !line.lasting;
    case "delete": {
      const { id = "", root } = line;
      const receipts = new Receipts(machine.sys, machine.stateDir);
      const receipt = receipts.head(id);
      if (receipt?.runtimeRoot !== (root ?? "")) return false;
      // Nobody uses any more what it was given, whether or not its deletion succeeds; to wait for that is most of the cost.
      const ended = receipt.ownPids === true && initHasEnded(machine.sys, root, id);
      if (ended) receipts.remove(id);
      return !ended;
    }
    default:
      return false;
  }
}

/** Gives the container of a `create`, `run` or `restore` what it asks for. Whether that was anything. */
function start(machine: Machine, line: CommandLine): boolean {
  const bundle = readBundle(machine.sys, line.bundle ?? ".", line.config);
  const container = { id: line.id ?? "", door: "runtime", runtimeRoot: line.root ?? "" };
  return inject(machine, bundle, container) !== undefined;
}

/**
 * Tells the engine: it shows its user the last line of `--log` that has level "error" (reference protocols.md 4.1).
 * What it cannot take must not hide what happened.
 */
function log(sys: Sys, line: CommandLine, thrown: unknown): void {
  if (line.log === undefined || line.log === "") return;
  const entry = { level: "error", msg: errorLine(thrown), time: rfc3339(sys.now()) };
  const text =
    line.logFormat === "json"
      ? JSON.stringify(entry)
      : `time=${JSON.stringify(entry.time)} level=error msg=${JSON.stringify(entry.msg)}`;
  try {
    sys.appendFile(line.log, `${text}\n`, 0o644);
  } catch (failure) {
    if (!(failure instanceof OsError)) throw failure;
    sys.err(`${errorLine(new SluiceError("E_LOG", failure.message, "make the folder of --log writable"))}\n`);
  }
}
