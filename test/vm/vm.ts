/**
 * A machine of its own for tests: Debian's kernel under QEMU, in software, so that it is the same everywhere. Inside:
 * cgroup v2 alone, all capabilities, an IOMMU, PCI devices, a card with SR-IOV, mediated devices, OCI runtimes, Sluice.
 */

import { type ChildProcessByStdio, spawn } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as readline from "node:readline";
import type { Readable, Writable } from "node:stream";
import { ROOT, SLUICE } from "../support/simulated-host.ts";
import { vmParts } from "./build.ts";
import { cpio, type Entry, fileEntry } from "./cpio.ts";

/**
 * What is plugged in, beside the virtio port. A GPU as it comes: a display controller with an audio function, in one
 * IOMMU group. A network card whose 7 virtual functions get a group each. A plain PCI device without a driver.
 */
const DEVICES = [
  "pcie-root-port,id=slot1,slot=1,chassis=1",
  "bochs-display,bus=slot1,addr=0.0,multifunction=on",
  "intel-hda,bus=slot1,addr=0.1",
  "pcie-root-port,id=slot2,slot=2,chassis=2",
  "igb,bus=slot2,romfile=",
  "pcie-root-port,id=slot3,slot=3,chassis=3",
  "edu,bus=slot3",
];

/** A kernel that has not come up after this long never will; 6 s are usual, with other work beside it 20. */
const BOOT_MS = 120_000;
/** The same for a script, where the test says nothing else. */
const SCRIPT_MS = 180_000;

/** Whether to skip a test here, with the reason, as `needs` of test/support/machine.ts. */
export function needsVm(): { skip: string | false } {
  const parts = vmParts();
  const reason = typeof parts === "string" ? parts : fs.existsSync(SLUICE) ? undefined : "needs build";
  if (reason === undefined) return { skip: false };
  if (process.env["CI"] === "true") throw new Error(`CI lacks what a test needs: ${reason}`);
  return { skip: reason };
}

export interface VmOptions {
  /** More files in the VM: place in it, and the file of this machine that is put there. */
  files?: Readonly<Record<string, string>>;
  /** More devices, each as QEMU's option -device takes it. */
  devices?: readonly string[];
}

export interface Output {
  code: number;
  out: string;
  err: string;
}

/** Why a VM is of no use any more, with what its kernel said. */
export class VmError extends Error {
  readonly what: "panic" | "hang" | "exit";

  constructor(what: VmError["what"], message: string, log: string) {
    super(`${message}. The VM's console:\n${log}`);
    this.name = "VmError";
    this.what = what;
  }
}

export interface Vm {
  /** QEMU's process. */
  readonly pid: number;
  /**
   * Runs a script with busybox's shell (as root, `set -eu`), after those given before it.
   *
   * @throws VmError where the kernel panics, the VM ends, or the script does not end in time, which ends the VM
   */
  run(script: string, options?: { limitMs?: number }): Promise<Output>;
  /** Runs a script that must succeed, and gives its output. @throws Error with all it printed, where it fails */
  sh(script: string, options?: { limitMs?: number }): Promise<string>;
  /** Puts a file into the VM, for small ones. */
  write(file: string, data: string | Uint8Array, mode?: number): Promise<void>;
  /** A file's content. */
  read(file: string): Promise<Buffer>;
  /** All that the kernel and the first process printed. */
  console(): string;
  /** Ends the VM. @throws VmError where it had ended by itself before */
  close(): Promise<void>;
}

/**
 * Boots a VM. `close` ends it, and the end of this process does, however that ends. It needs no root and leaves no file.
 *
 * @throws VmError where it does not come up
 */
export async function boot(options: VmOptions = {}): Promise<Vm> {
  const parts = vmParts();
  if (typeof parts === "string") throw new Error(parts);
  const log = nameless();
  const initramfs = nameless();
  fs.writeSync(initramfs, fs.readFileSync(parts.initramfs));
  fs.writeSync(initramfs, cpio(ownEntries(options.files ?? {})));
  const lib = path.join(parts.qemu, "usr/lib/x86_64-linux-gnu");
  const share = path.join(parts.qemu, "usr/share");
  const command = [
    // QEMU dies with us.
    ...["setpriv", "--pdeathsig", "KILL", "--"],
    // Another Debian's program, with that Debian's loader and libraries.
    ...[path.join(parts.qemu, "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", lib],
    ...[path.join(parts.qemu, "usr/bin/qemu-system-x86_64"), "-L", `${share}/qemu`, "-L", `${share}/seabios`],
    ...["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
    ...["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"],
    ...["-kernel", parts.kernel, "-initrd", "/proc/self/fd/3"],
    // Self-tests of ciphers and defences against other tenants cost a second of the boot. An oops is a panic, and a
    // panic ends QEMU.
    ...["-append", "console=ttyS0 quiet panic=-1 oops=panic intel_iommu=on mitigations=off cryptomgr.notests"],
    ...["-chardev", "file,id=log,path=/proc/self/fd/2,append=on", "-serial", "chardev:log"],
    ...["-chardev", "stdio,id=port,signal=off", "-device", "virtio-serial", "-device", "virtserialport,chardev=port"],
    ...["-device", "intel-iommu,intremap=on,caching-mode=on"],
    ...[...DEVICES, ...(options.devices ?? [])].flatMap((device) => ["-device", device]),
  ];
  const [program, ...args] = command as [string, ...string[]];
  const stdio: ["pipe", "pipe", number, number] = ["pipe", "pipe", log, initramfs];
  const child = spawn(program, args, { stdio }) as ChildProcessByStdio<Writable, Readable, null>;
  fs.closeSync(initramfs);
  const vm = new Machine(child, log);
  await vm.ready();
  return vm;
}

/** An open file without a name, so that nothing is left of it. */
function nameless(): number {
  const tmpfile = 0o20000000 | fs.constants.O_DIRECTORY; // O_TMPFILE
  return fs.openSync(os.tmpdir(), tmpfile | fs.constants.O_RDWR | fs.constants.O_APPEND, 0o600);
}

/** What comes on top of the lab's initramfs: the first program, Sluice, the test's files. */
function ownEntries(files: Readonly<Record<string, string>>): Map<string, Entry> {
  const init = fileEntry(path.join(ROOT, "test/vm/init"));
  const entries = new Map<string, Entry>([
    ["init", { ...init, mode: 0o755 } as Entry],
    ["usr/bin/sluice", fileEntry(SLUICE)],
    ["usr/bin/sluice-runtime", { kind: "link", target: "sluice" }],
  ]);
  for (const [place, file] of Object.entries(files)) entries.set(place.replace(/^\/+/, ""), fileEntry(file));
  return entries;
}

class Machine implements Vm {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #log: number;
  readonly #lines: AsyncIterator<string>;
  readonly #exited: Promise<string>;
  #number = 0;
  /** Resolves, and never fails, when the last script that was given is over. */
  #last: Promise<unknown> = Promise.resolve();
  /** Whether the end of QEMU is known: we ended it, or somebody was told. */
  #known = false;

  constructor(child: ChildProcessByStdio<Writable, Readable, null>, log: number) {
    this.#child = child;
    this.#log = log;
    this.#lines = readline.createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    this.#exited = new Promise((resolve) => {
      child.on("error", (error) => resolve(error.message));
      child.on("exit", (code, signal) => resolve(`it ended with ${code ?? signal}`));
    });
    // Writing to a VM that has ended fails; that it has ended shows when its answer is read.
    child.stdin.on("error", () => {});
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  async ready(): Promise<void> {
    const line = await this.#line(BOOT_MS, "to come up");
    if (line !== "ready") throw new Error(`the VM's first process says ${line}`);
  }

  run(script: string, options: { limitMs?: number } = {}): Promise<Output> {
    const result = this.#last.then(() => this.#run(script, options.limitMs ?? SCRIPT_MS));
    this.#last = result.catch(() => {});
    return result;
  }

  async #run(script: string, limitMs: number): Promise<Output> {
    const number = ++this.#number;
    this.#child.stdin.write(`${number} ${Buffer.from(script).toString("base64")}\n`);
    const [answered, code, out, err] = (await this.#line(limitMs, `to run\n${script}\n`)).split(" ");
    if (answered !== `${number}` || code === undefined) throw new Error(`the VM answered ${answered}, not ${number}`);
    const decode = (data = "") => Buffer.from(data, "base64").toString();
    return { code: Number(code), out: decode(out), err: decode(err) };
  }

  async sh(script: string, options?: { limitMs?: number }): Promise<string> {
    const { code, out, err } = await this.run(script, options);
    if (code !== 0) throw new Error(`exit status ${code} of\n${script}\noutput:\n${out}\nerrors:\n${err}`);
    return out;
  }

  async write(file: string, data: string | Uint8Array, mode = 0o644): Promise<void> {
    const encoded = Buffer.from(data).toString("base64");
    await this.sh(`mkdir -p ${quote(path.dirname(file))}; echo ${encoded} | base64 -d >${quote(file)}
      chmod ${mode.toString(8)} ${quote(file)}`);
  }

  async read(file: string): Promise<Buffer> {
    return Buffer.from(await this.sh(`base64 -w 0 ${quote(file)}`), "base64");
  }

  console(): string {
    return fs.readFileSync(`/proc/self/fd/${this.#log}`, "utf8").replaceAll("\r", "");
  }

  async close(): Promise<void> {
    await this.#last;
    const alive = this.#child.exitCode === null && this.#child.signalCode === null;
    if (!alive && !this.#known) throw await this.#end();
    this.#known = true;
    this.#child.kill("SIGKILL");
    await this.#exited;
    fs.closeSync(this.#log);
  }

  /** The next line from the VM. @throws VmError where it ends instead, or where it took longer, which ends it */
  async #line(limitMs: number, purpose: string): Promise<string> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.#child.kill("SIGKILL");
    }, limitMs);
    const { value, done } = await this.#lines.next();
    clearTimeout(timer);
    if (done !== true) return value;
    throw await this.#end(late ? `it took longer than ${limitMs} ms ${purpose}` : undefined);
  }

  async #end(late?: string): Promise<VmError> {
    const how = await this.#exited;
    this.#known = true;
    const log = this.console();
    if (late !== undefined) return new VmError("hang", `the VM was stopped, as ${late}`, log);
    if (log.includes("Kernel panic")) return new VmError("panic", "the VM's kernel panicked", log);
    return new VmError("exit", `the VM is gone: ${how}`, log);
  }
}

/** A word of the shell. */
export function quote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
