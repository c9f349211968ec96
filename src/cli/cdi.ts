import { problemError } from "../cdi/problem.ts";
import { checkSpecFile } from "../cdi/read.part.ts";
import type { ListedDevice } from "../cdi/registry.ts";
import { openMachineRegistry } from "../plan/registry.ts";
import { errorLine, printable } from "../sys/error.ts";
import { EXIT } from "../sys/exit.ts";
import type { Sys } from "../sys/sys.ts";
import { type Parsed, UsageError } from "./options.ts";
import { describeEdits, machineOf } from "./plan.ts";
import { table } from "./table.ts";

/** `sluice cdi list`: every device, and every spec file that could not be used. Fails where one could not. */
export function cdiList(sys: Sys, parsed: Parsed): number {
  if (parsed.positional.length > 0) throw new UsageError("it takes no arguments");
  const machine = machineOf(sys, parsed);
  const registry = openMachineRegistry(machine);
  const devices = registry.devices();
  const problems = registry.problems();
  if (parsed.flag("json")) {
    sys.out(`${JSON.stringify({ folders: machine.specDirs, devices, problems }, null, 2)}\n`);
  } else {
    if (devices.length === 0) sys.out(`No CDI devices in ${printable(machine.specDirs.join(", "))}.\n`);
    else
      sys.out(
        table(
          ["DEVICE", "SPEC", "STATE"],
          devices.map((device) => [device.name, device.path, stateOf(device)]),
        ),
      );
    for (const problem of problems) sys.err(`${errorLine(problemError(problem.path, [problem]))}\n`);
  }
  return problems.length === 0 ? EXIT.done : EXIT.failed;
}

function stateOf({ shadowedBy, conflictsWith }: ListedDevice): string {
  if (conflictsWith !== undefined) return `unusable: also in ${conflictsWith}`;
  return shadowedBy === undefined ? "usable" : `hidden by ${shadowedBy}`;
}

/** `sluice cdi show NAME`: one device, as its spec says it, with the edits that all devices of the spec share. */
export function cdiShow(sys: Sys, parsed: Parsed): number {
  const [name] = parsed.positional;
  if (name === undefined || parsed.positional.length > 1)
    throw new UsageError("give one device NAME, vendor/class=name");
  const { device, spec, path } = openMachineRegistry(machineOf(sys, parsed)).find(name);
  if (parsed.flag("json")) {
    const { cdiVersion, kind, containerEdits = {} } = spec;
    sys.out(`${JSON.stringify({ path, cdiVersion, kind, device, containerEdits }, null, 2)}\n`);
    return EXIT.done;
  }
  const rows = [
    ...describeEdits(spec.containerEdits ?? {}).map(([what, detail]) => [what, detail, `all devices of ${spec.kind}`]),
    ...describeEdits(device.containerEdits).map(([what, detail]) => [what, detail, "this device"]),
  ];
  sys.out(`${name}\nfrom ${printable(path)}, CDI ${spec.cdiVersion}\n\n${table(["WHAT", "DETAIL", "FOR"], rows)}`);
  return EXIT.done;
}

/** `sluice cdi validate FILE...`: every problem of every file. */
export function cdiValidate(sys: Sys, parsed: Parsed): number {
  if (parsed.positional.length === 0) throw new UsageError("give at least one FILE");
  const machine = machineOf(sys, parsed);
  const results = parsed.positional.map((path) => ({ path, problems: checkSpecFile(machine.host, path).problems }));
  if (parsed.flag("json")) {
    sys.out(`${JSON.stringify(results, null, 2)}\n`);
  } else {
    for (const { path, problems } of results) {
      if (problems.length === 0) sys.out(`${printable(path)}: valid\n`);
      for (const p of problems) sys.err(`${errorLine(problemError(path, [p]))}\n`);
    }
  }
  return results.every((result) => result.problems.length === 0) ? EXIT.done : EXIT.failed;
}
