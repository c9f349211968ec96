/** `sluice cdi generate`. A part, since no other command reads a whole machine and writes specs. */

import { openRegistry } from "../cdi/registry.ts";
import { type Made, makeSpecs } from "../host/cdi-spec.ts";
import type { MadeSpec } from "../host/draft.ts";
import { makeMachineSpecs } from "../host/generate.ts";
import type { SpecOptions } from "../host/origin.ts";
import { lockSpecs, type Published, publish, publishOne, specText } from "../host/publish.ts";
import type { Machine } from "../plan/machine.ts";
import { errorLine, OsError, printable, quote, SluiceError } from "../sys/error.ts";
import { EXIT } from "../sys/exit.ts";
import type { Sys } from "../sys/sys.ts";
import { type Parsed, UsageError } from "./options.ts";
import { machineOf } from "./plan.ts";
import { table } from "./table.ts";
import { unseenLines } from "./unseen.ts";

/** Where Sluice's own files are that last as long as a boot. */
const STATE = "/run/sluice";

/** What is to be written where. */
export interface Task {
  readonly machine: Machine;
  readonly options: SpecOptions;
  /** Of the one spec wanted; all where absent. */
  readonly kind?: string;
  readonly replace: boolean;
  /** `-` is standard output. A folder gets a file for each kind, under Sluice's names. */
  readonly output: { readonly file: string } | { readonly dir: string };
}

export function generate(sys: Sys, parsed: Parsed): number {
  const task = taskOf(sys, parsed);
  const made = make(task);
  if ("file" in task.output && task.output.file === "-") {
    const one = only(made, task);
    tell(sys, problemsOf(made, [], sys.euid));
    if (one === undefined) return EXIT.failed;
    sys.out(specText(one));
    return EXIT.done;
  }
  const done = write(task, made);
  if (parsed.flag("json")) {
    sys.out(
      `${JSON.stringify({ specs: done, faults: made.faults, notices: made.notices, unseen: made.host.unseen }, null, 2)}\n`,
    );
  } else {
    report(sys, task, made, done);
    tell(sys, problemsOf(made, done, sys.euid));
  }
  return made.faults.length === 0 && done.every(({ state }) => state !== "left out") ? EXIT.done : EXIT.failed;
}

/** @throws UsageError */
export function taskOf(sys: Sys, parsed: Parsed): Task {
  if (parsed.positional.length > 0) throw new UsageError("it takes no arguments");
  const machine = machineOf(sys, parsed);
  const [output, kind] = [parsed.one("output"), parsed.one("kind")];
  const isOwn = parsed.one("root") === undefined;
  if (output === undefined && !isOwn) {
    throw new UsageError("the specs of another tree are not for this machine: say with --output where they go");
  }
  const dir = output === undefined ? (machine.specDirs.at(-1) as string) : folderOf(sys, output);
  if (dir === undefined && output !== "-" && !/\.json$/.test(output ?? "")) {
    throw new UsageError(
      `--output ${quote(output ?? "")} is neither a folder, nor "-", nor a file whose name ends in .json`,
    );
  }
  if (parsed.flag("no-hook") && parsed.one("hook") !== undefined) {
    throw new UsageError("--hook and --no-hook are opposites: give one of them");
  }
  const hook = parsed.flag("no-hook") ? "" : (parsed.one("hook") ?? self(sys));
  if (hook !== "" && !hook.startsWith("/")) throw new UsageError(`--hook ${quote(hook)} is not an absolute path`);
  const lasts = /^\/(?:var\/)?run\//.test(dir ?? output ?? "");
  return {
    machine,
    // A spec that outlives the boot cannot count on a file that does not.
    options: {
      hook,
      params: isOwn && lasts && hook !== "" && sys.euid === 0 ? `${STATE}/cdi/nvidia-params` : "",
      features: machine.settings.policy.features,
    },
    ...(kind === undefined ? {} : { kind }),
    replace: parsed.flag("replace"),
    output: dir === undefined ? { file: output as string } : { dir },
  };
}

function folderOf(sys: Sys, output: string): string | undefined {
  const plain = output.replace(/(?<=.)\/+$/, "");
  try {
    return plain !== output || sys.stat(output)?.kind === "dir" ? plain : undefined;
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined; // writing it will say what is wrong
    throw thrown;
  }
}

/** The very program that runs, which engines start as the hook. */
function self(sys: Sys): string {
  return sys.readLink("/proc/self/exe").replace(/ \(deleted\)$/, "");
}

/** The specs of the task's machine, of the kind that is wanted. */
export function make({ machine, options, kind }: Task): Made {
  const isOwn = machine.host === machine.sys;
  const made = isOwn ? makeMachineSpecs(machine.sys, options) : makeSpecs(machine.host, options);
  if (kind === undefined) return made;
  return {
    ...made,
    specs: made.specs.filter(({ spec }) => spec.kind === kind),
    faults: made.faults.filter((fault) => fault.kind === kind),
  };
}

/** @throws SluiceError E_CDI_WRITE, E_GENERATE_KIND */
export function write(task: Task, made: Made): Published[] {
  const { machine, output, replace, kind } = task;
  if ("file" in output) {
    const one = only(made, task);
    if (one === undefined) return [];
    const dir = output.file.includes("/") ? output.file.slice(0, output.file.lastIndexOf("/")) || "/" : ".";
    const release = lockSpecs(machine.sys, dir);
    try {
      return [publishOne(machine.sys, dir, output.file, one, made.params, replace)];
    } finally {
      release();
    }
  }
  const release = lockSpecs(machine.sys, output.dir);
  try {
    return publish(machine.sys, output.dir, made, replace, kind);
  } finally {
    release();
  }
}

/** The one spec that fits into one file. */
function only({ specs, faults }: Made, { kind }: Task): MadeSpec | undefined {
  if (specs.length <= 1 || faults.length > 0) return specs[0];
  const kinds = specs.map(({ spec }) => spec.kind).join(", ");
  throw new SluiceError(
    "E_GENERATE_KIND",
    `this machine has devices of several kinds, and a spec is of one: ${kinds}`,
    kind === undefined ? "choose one with --kind, or name a folder with --output" : "name a folder with --output",
  );
}

/** What was written, as a table; and other specs that it hides. */
export function report(sys: Sys, { machine, output }: Task, { specs }: Made, done: readonly Published[]): void {
  if (specs.length === 0 && done.length === 0) {
    sys.out("No GPUs: nothing to write.\n");
    return;
  }
  const rows = done.map(({ kind, path, state, devices }) => [kind, path, state, devices.join(" ") || "-"]);
  sys.out(table(["KIND", "SPEC", "STATE", "DEVICES"], rows));
  if ("file" in output) return;
  const ours = new Set(done.map(({ path }) => path));
  const hidden = openRegistry(machine.sys, machine.specDirs)
    .devices()
    .filter(({ shadowedBy }) => shadowedBy !== undefined && ours.has(shadowedBy));
  for (const path of new Set(hidden.map((device) => device.path))) {
    sys.err(`sluice: ${printable(path)} has devices of the same names; those of ${output.dir} count\n`);
  }
}

/** What is wrong, what was left out, and what could not be seen: a line each, for standard error. */
export function problemsOf(made: Made, done: readonly Published[], euid: number): string[] {
  const told = done.flatMap(({ kind, why, state }): string[] => {
    if (why === undefined) return [];
    if (state !== "left out") return [why];
    const remedy = "remove it, or run this with --replace to move it aside";
    return [`E_CDI_CONFLICT: the spec of ${kind} was left out: ${why}; ${remedy}`];
  });
  const faults = made.faults.map(({ what, remedy }) => errorLine(new SluiceError("E_DRIVER_MISMATCH", what, remedy)));
  const rest = [...told, ...made.notices.map(printable), ...unseenLines(made.host.unseen, euid)];
  return [...faults, ...rest.map((line) => `sluice: ${line}`)];
}

export function tell(sys: Sys, lines: readonly string[]): void {
  for (const line of lines) sys.err(`${line}\n`);
}
