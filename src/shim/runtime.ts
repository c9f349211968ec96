import { readBundle } from "../oci/bundle.ts";
import { type CommandLine, parseCommandLine } from "../oci/cmdline.ts";
import { inject } from "../plan/inject.ts";
import { type Machine, openMachine } from "../plan/machine.ts";
import { Receipts } from "../plan/receipt.ts";
import { EXIT, errorLine, stackOf } from "../sys/enter.ts";
import { OsError, SluiceError } from "../sys/error.ts";
import type { Sys } from "../sys/sys.ts";
import { rfc3339 } from "../sys/time.ts";
import { findRuntime } from "./low-level.ts";

/** The commands that start a container from a bundle's config.json. */
const STARTING = ["create", "run", "restore"];

/**
 * The OCI runtime in front of runc or crun (DESIGN.md section 2): gives the container of a `create`, `run` or `restore`
 * what it asks for, by editing its config.json, and then becomes the low-level runtime with the very arguments,
 * environment and descriptors that it was called with. Everything else goes straight on.
 *
 * Only where something is left to do afterwards (a receipt to release) does it stay, as the parent.
 */
export function runtime(sys: Sys): number {
  // Called as `sluice runtime ...` or, under the name sluice-runtime, with the runtime's arguments at once.
  const from = (sys.args[0] ?? "").endsWith("/sluice-runtime") || sys.args[0] === "sluice-runtime" ? 1 : 2;
  const args = sys.args.slice(from);
  const line = parseCommandLine(args);
  try {
    const machine = openMachine(sys);
    const lowLevel = findRuntime(sys, machine.settings.runtime.runtimes);
    // A call for the runtime's own help names no container.
    const command = args.some((arg) => /^(?:-h|--?help)$/.test(arg)) ? "" : (line.command ?? "");
    const staying = STARTING.includes(command)
      ? start(machine, line, args)
      : command === "delete" && isOurs(machine, line);
    if (!staying || line.id === undefined) return sys.exec(lowLevel, from);
    const code = sys.run(lowLevel, from);
    const receipts = new Receipts(sys, machine.stateDir);
    if (command !== "delete") receipts.remove(line.id);
    else if (code === 0) receipts.release(line.id, line.root ?? "");
    return code;
  } catch (thrown) {
    log(sys, line, thrown);
    sys.err(`${errorLine(thrown)}\n${stackOf(thrown)}`);
    return thrown instanceof SluiceError ? EXIT.failed : EXIT.internal;
  }
}

/**
 * Edits the bundle. Whether the container also ends with this call, which then has its receipt to release: `run` in
 * the foreground deletes it by itself, and nobody calls `delete`.
 */
function start(machine: Machine, line: CommandLine, args: readonly string[]): boolean {
  const bundle = readBundle(machine.sys, line.bundle ?? ".", line.config);
  const container = { id: line.id ?? "", door: "runtime", runtimeRoot: line.root ?? "" };
  const plan = inject(machine, bundle, container);
  const lasting = args.some((arg) => /^(?:-d|--?detach|--?keep)(?:=|$)/.test(arg));
  return plan !== undefined && line.command === "run" && !lasting;
}

function isOurs(machine: Machine, line: CommandLine): boolean {
  return line.id !== undefined && new Receipts(machine.sys, machine.stateDir).has(line.id);
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
    sys.err(`sluice: E_LOG: ${failure.message}; make the folder of --log writable\n`);
  }
}
