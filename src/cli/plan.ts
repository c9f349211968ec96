import type { ContainerEdits } from "../cdi/spec.ts";
import { readBundle } from "../oci/bundle.ts";
import { inject, planFor } from "../plan/inject.ts";
import { type Machine, openMachine } from "../plan/machine.ts";
import type { Plan } from "../plan/plan.ts";
import type { ExtraRequest } from "../request/request.ts";
import { printable } from "../sys/error.ts";
import { EXIT } from "../sys/exit.ts";
import type { Sys } from "../sys/sys.ts";
import { type Parsed, parseAnnotations, UsageError } from "./options.ts";
import { table } from "./table.ts";

export function machineOf(sys: Sys, parsed: Parsed): Machine {
  const root = parsed.one("root");
  const config = parsed.one("config");
  const specDirs = parsed.many("cdi-dir");
  return openMachine(sys, {
    ...(root === undefined ? {} : { root }),
    ...(config === undefined ? {} : { config }),
    ...(specDirs.length === 0 ? {} : { specDirs }),
  });
}

function extraOf(parsed: Parsed): ExtraRequest {
  return { devices: parsed.many("device"), annotations: parseAnnotations(parsed.many("annotation")) };
}

/** `sluice plan`: prints the plan for a bundle or a config.json; changes nothing. */
export function planCommand(sys: Sys, parsed: Parsed): number {
  const dir = parsed.one("bundle");
  const file = parsed.one("spec");
  if (parsed.positional.length > 0 || (dir === undefined) === (file === undefined)) {
    throw new UsageError("give either --bundle DIR or --spec CONFIG_JSON");
  }
  const machine = machineOf(sys, parsed);
  const { config } = readBundle(sys, dir ?? "", file);
  const plan = planFor(machine, config, extraOf(parsed));
  sys.out(parsed.flag("json") ? planJson(plan) : planTable(plan));
  return EXIT.done;
}

/** `sluice apply`: does to a bundle on disk what the runtime would do. Its folder's name is the container's id. */
export function applyCommand(sys: Sys, parsed: Parsed): number {
  const dir = parsed.one("bundle");
  if (dir === undefined || parsed.positional.length > 0) throw new UsageError("give --bundle DIR");
  const machine = machineOf(sys, parsed);
  const bundle = readBundle(sys, dir);
  const id = lastComponent(dir.startsWith("/") ? dir : `${sys.cwd()}/${dir}`);
  const container = { id, door: "apply", runtimeRoot: "" };
  const plan = inject(machine, bundle, container, extraOf(parsed));
  sys.out(parsed.flag("json") ? planJson(plan) : planTable(plan));
  return EXIT.done;
}

/** The name of a folder, `.` and `..` in its path taken for what they mean. */
function lastComponent(path: string): string {
  const parts: string[] = [];
  for (const part of path.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return parts.at(-1) ?? "";
}

function planJson(plan: Plan | undefined): string {
  const { digest, devices, edits } = plan ?? { digest: "", devices: [], edits: [] };
  return `${JSON.stringify({ digest, devices, edits }, null, 2)}\n`;
}

function planTable(plan: Plan | undefined): string {
  if (plan === undefined) return "Nothing to inject: the container asks for no device, or has it already.\n";
  const devices = plan.devices.map((d) => [d.name, d.from, d.grant]);
  const edits = plan.edits.map(({ edits: own, reason, source }) => {
    const rows = describeEdits(own);
    const width = rows.reduce((most, [what]) => Math.max(most, what.length), 0);
    const lines = rows.map(([what, detail]) => `  ${what.padEnd(width)}  ${printable(detail)}\n`);
    return `\n${printable(reason)}\nfrom ${printable(source.spec)}\n${lines.join("")}`;
  });
  return `${table(["DEVICE", "ASKED FOR BY", "GRANTED BY"], devices)}${edits.join("")}\nplan ${plan.digest}\n`;
}

/** Each single thing that edits do: what it is, and the thing. */
export function describeEdits(edits: ContainerEdits): [what: string, detail: string][] {
  const rows: [string, string][] = [];
  for (const node of edits.deviceNodes ?? []) {
    const numbers = node.major === undefined ? "" : ` ${node.type ?? "?"} ${node.major}:${node.minor ?? 0}`;
    const host = node.hostPath === undefined || node.hostPath === node.path ? "" : ` (host ${node.hostPath})`;
    rows.push(["device node", `${node.path}${numbers} ${node.permissions || "rwm"}${host}`]);
  }
  for (const mount of edits.mounts ?? []) {
    const host = mount.hostPath === mount.containerPath ? "" : ` (host ${mount.hostPath})`;
    rows.push(["mount", `${mount.containerPath} ${(mount.options ?? []).join(",")}${host}`]);
  }
  for (const entry of edits.env ?? []) rows.push(["variable", entry]);
  for (const hook of edits.hooks ?? []) rows.push([`hook ${hook.hookName}`, (hook.args ?? [hook.path]).join(" ")]);
  for (const net of edits.netDevices ?? [])
    rows.push(["network device", `${net.name} (host ${net.hostInterfaceName})`]);
  for (const gid of edits.additionalGids ?? []) rows.push(["group", String(gid)]);
  if (edits.intelRdt !== undefined) rows.push(["Intel RDT", JSON.stringify(edits.intelRdt)]);
  return rows;
}
