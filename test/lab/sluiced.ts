/** build/sluiced on a machine of the lab, as a package would install it, with a kubelet of the tests' own. */

import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { AuditLine } from "../../src/plan/audit.ts";
import { ROOT } from "../support/simulated-host.ts";
import { type FakeKubelet, startKubelet } from "./kubelet.ts";
import type { Machine, Owner, Started } from "./machine.ts";

const PROGRAM = path.join(ROOT, "build/sluiced.mjs");
const INSTALLED = "/usr/lib/sluice/sluiced.mjs";
const SETTINGS = "etc/sluice/config.toml";
/** Milliseconds: longer than anything here takes on a slow machine. */
const PATIENCE = 60_000;
const POLL = 10;

export interface LogLine {
  readonly msg: string;
  readonly [field: string]: unknown;
}

export interface Sluiced {
  readonly kubelet: FakeKubelet;
  /** Starts it, and waits until the engine has taken its plugin. */
  start(): Promise<void>;
  isRunning(): boolean;
  /** SIGTERM, and waits for its end. */
  stop(): Promise<void>;
  /** SIGKILL, and waits for its end. */
  kill(): Promise<void>;
  /** Makes it hang, or go on: SIGSTOP, SIGCONT. */
  pause(): void;
  resume(): void;
  /** Waits until the engine has taken its plugin as often as this, since it was last started. */
  registered(times?: number): Promise<void>;
  /** How often the engine has. */
  registrations(): number;
  /** Adds settings to those that the machine had, in one step. Takes those back that were added before. */
  set(settings: string): void;
  /** The number of its process, as it is seen from outside. */
  pid(): number;
  /** What it has logged since it was last started. */
  lines(): LogLine[];
  /** The audit log, in which every line must be whole. */
  audit(): AuditLine[];
  /** Ids of the containers that have a receipt, sorted. */
  receipts(): string[];
}

/** Installs sluiced. It ends with the machine. */
export async function installSluiced(owner: Owner, machine: Machine): Promise<Sluiced> {
  for (const program of [process.execPath, "/usr/bin/flock"]) carryProgram(machine, program);
  const base = fs.readFileSync(path.join(machine.dir, SETTINGS), "utf8");
  const kubelet = await startKubelet(owner, path.join(machine.shared, "kubelet"));
  const text = fs.readFileSync(PROGRAM, "utf8");
  machine.write(INSTALLED, text);
  machine.must("mkdir", "-p", "/var/log");
  const [interpreter, ...flags] = interpreterOf(text);

  let started: Started | undefined;
  let ended = Promise.resolve();
  const pid = (): number => {
    if (started === undefined) throw new Error("sluiced has not been started");
    return processIn(started);
  };
  const signal = (name: NodeJS.Signals): void => {
    process.kill(pid(), name);
  };
  const endBy = async (name: NodeJS.Signals): Promise<void> => {
    signal(name);
    await ended;
    started = undefined;
  };
  const lines = (): LogLine[] =>
    (started?.log() ?? "")
      .split("\n")
      .flatMap((line) => (line.startsWith("{") && line.endsWith("}") ? [JSON.parse(line) as LogLine] : []));
  const sluiced: Sluiced = {
    kubelet,
    pid,
    lines,
    registrations: () => lines().filter(({ msg }) => msg === "NRI: registered").length,
    async registered(times = 1) {
      for (const end = Date.now() + PATIENCE; sluiced.registrations() < times; await sleep(POLL)) {
        if (started?.child.exitCode === null && Date.now() < end) continue;
        throw new Error(`sluiced has not registered ${times} times:\n${started?.log()}`);
      }
    },
    async start() {
      const now = machine.spawn("env", "-i", "PATH=/usr/sbin:/usr/bin", interpreter, ...flags, INSTALLED);
      started = now;
      ended = new Promise((resolve) => now.child.once("exit", () => resolve()));
      await sluiced.registered();
    },
    isRunning: () => started !== undefined,
    stop: () => endBy("SIGTERM"),
    kill: () => endBy("SIGKILL"),
    pause: () => signal("SIGSTOP"),
    resume() {
      // With its child, nsenter stops itself, and would not see its end.
      started?.child.kill("SIGCONT");
      signal("SIGCONT");
    },
    set(settings) {
      const file = path.join(machine.dir, SETTINGS);
      fs.writeFileSync(`${file}.new`, `${base}[daemon]\nkubelet_socket = "${kubelet.socket}"\n${settings}`);
      fs.renameSync(`${file}.new`, file);
    },
    audit() {
      const file = path.join(machine.dir, "var/log/sluice/audit.jsonl");
      const text = fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "";
      if (text !== "" && !text.endsWith("\n")) throw new Error("the audit log ends within a line");
      return text
        .split("\n")
        .slice(0, -1)
        .map((line) => JSON.parse(line) as AuditLine);
    },
    receipts() {
      const dir = path.join(machine.dir, "run/sluice/receipts");
      const names = fs.existsSync(dir) ? fs.readdirSync(dir) : [];
      return names.flatMap((name) => /^([^.].*)\.json$/.exec(name)?.[1] ?? []).sort();
    },
  };
  sluiced.set("");
  return sluiced;
}

/** What its first line has it run by: the option -S is not one of each machine's `env`. */
function interpreterOf(text: string): [string, ...string[]] {
  const words = /^#!\/usr\/bin\/env -S (.+)$/m.exec(text)?.[1];
  if (words === undefined) throw new Error(`${PROGRAM} begins with no line for env`);
  return ["env", ...words.split(" ")];
}

/** The process that a machine's command has become: the only child of `nsenter`, as it is seen from outside. */
function processIn({ child }: Started): number {
  const [pid] = fs.readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ");
  return Number(pid);
}

/** Puts a program of ours on the machine, with its libraries: the machine's Debian has it not, or another libc. */
function carryProgram(machine: Machine, program: string): void {
  const name = path.basename(program);
  const dir = path.join(machine.shared, name);
  fs.mkdirSync(dir);
  const said = execFileSync("ldd", [program], { encoding: "utf8" });
  const libraries = [...said.matchAll(/(\/\S+) \(0x/g)].map(([, file]) => file as string);
  for (const file of [program, ...libraries]) fs.copyFileSync(file, path.join(dir, path.basename(file)));
  const loader = libraries.map((file) => path.basename(file)).find((file) => file.startsWith("ld-"));
  if (loader === undefined) throw new Error(`ldd names no loader of ${program}:\n${said}`);
  const script = `#!/bin/sh\nexec ${dir}/${loader} --library-path ${dir} ${dir}/${name} "$@"\n`;
  machine.write(`/usr/bin/${name}`, script, 0o755);
}
