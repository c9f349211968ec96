/**
 * The parts of the VM, made once and kept in the lab: QEMU, Debian's kernel with the modules that the VM loads, and what
 * its root holds beside Sluice.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { engineRoot } from "../lab/build.ts";
import { cached, placeOf } from "../lab/cache.ts";
import { must, unpack } from "../lab/debian.ts";
import { cpio, type Entry, fileEntry } from "./cpio.ts";

/** Debian 13's: its QEMU has a card with SR-IOV whose VFs have a driver (igb), and its kernel is the last stable one. */
const SUITE = "trixie";

/**
 * The VM loads these and what they depend on: VFIO with mdev, the card's drivers for its physical and its virtual
 * functions, and overlayfs. mtty, of the kernel's samples, makes mediated devices without hardware.
 */
const MODULES = ["vfio_iommu_type1", "vfio-pci", "mdev", "mtty", "igb", "igbvf", "overlay"];

/** Where the sample lies in the kernel's source. */
const MTTY = "samples/vfio-mdev/mtty.c";

/**
 * What the kernel's build calls beside the compiler that the headers depend on. Its awk is found through Debian's
 * alternatives, which a maintainer script would have made.
 */
const BUILD_TOOLS = ["make", "dash", "sed", "grep", "mawk", "diffutils", "findutils", "xz-utils"];

/** The OCI runtimes in the VM, each with the engines' root and the file that it is taken from. */
const RUNTIMES = {
  "usr/bin/runc": ["forky", "/usr/sbin/runc"],
  "usr/bin/runc-1.1": ["trixie", "/usr/sbin/runc"],
  "usr/bin/crun": ["forky", "/usr/bin/crun"],
} as const;

const LOADER = "/lib64/ld-linux-x86-64.so.2";

const QEMU = ["vm-qemu", [SUITE, 1]] as const;
const KERNEL = ["vm-kernel", [SUITE, MODULES, BUILD_TOOLS, 1]] as const;
const ROOT = ["vm-root", [RUNTIMES, KERNEL, 2]] as const;

export interface VmParts {
  /** A Debian root with QEMU in it. */
  qemu: string;
  kernel: string;
  /** The root as cpio archive, without the program that starts first. */
  initramfs: string;
}

/** The parts where `make lab` put them, or why they are not there. */
export function vmParts(): VmParts | string {
  if (process.arch !== "x64") return `the VM is an x86-64 machine, this is ${process.arch}`;
  const [qemu, kernel, root] = [QEMU, KERNEL, ROOT].map(([name, key]) => placeOf(name, key)) as [
    string,
    string,
    string,
  ];
  if (![qemu, kernel, root].every((place) => fs.existsSync(place))) return "needs the lab's VM (run `make lab`)";
  return { qemu, kernel: path.join(kernel, "vmlinuz"), initramfs: path.join(root, "root.cpio") };
}

/** Makes what of the VM is not there yet; nothing where it cannot run. Needs root: a module is built in a chroot. */
export function makeVm(): void {
  if (process.arch !== "x64") return;
  cached(...QEMU, (dir) => unpack(dir, SUITE, ["qemu-system-x86"]));
  const kernel = cached(...KERNEL, makeKernel);
  cached(...ROOT, (dir) => fs.writeFileSync(path.join(dir, "root.cpio"), cpio(rootEntries(kernel))));
}

/** `vmlinuz`, and in `modules/` the modules with their place in the order of loading before their names. */
function makeKernel(dir: string): void {
  const build = path.join(dir, "build");
  const unused = ["gpu", "media", "sound", "infiniband", "staging"].map((name) => `usr/lib/modules/*/${name}`);
  unpack(build, SUITE, ["linux-headers-amd64", "linux-source", ...BUILD_TOOLS], { exclude: unused });
  const [release] = fs.readdirSync(path.join(build, "usr/lib/modules")) as [string];
  const kernel = path.join(build, "usr/lib/modules", release, "kernel");
  const files = new Map([["mtty", makeMtty(build, release)]]);
  for (const file of fs.readdirSync(kernel, { recursive: true, encoding: "utf8" })) {
    const name = /([^/]+)\.ko(\.xz)?$/.exec(file)?.[1];
    if (name !== undefined) files.set(spelling(name), path.join(kernel, file));
  }

  const modules = path.join(dir, "modules");
  fs.mkdirSync(modules);
  const loaded = new Set<string>();
  const add = (name: string): void => {
    if (loaded.has(name)) return;
    let file = files.get(name);
    if (file === undefined) throw new Error(`Linux ${release} of ${SUITE} has no module ${name}`);
    if (file.endsWith(".xz")) {
      must("chroot", [build, "xz", "-d", path.join("/", path.relative(build, file))]);
      file = file.slice(0, -".xz".length);
    }
    const depends = /\0depends=([^\0]*)\0/.exec(fs.readFileSync(file, "latin1"))?.[1] ?? "";
    for (const other of depends.split(",")) if (other !== "") add(spelling(other));
    loaded.add(name);
    fs.copyFileSync(file, path.join(modules, `${String(loaded.size).padStart(2, "0")}-${name}.ko`));
  };
  for (const name of MODULES) add(spelling(name));
  fs.copyFileSync(path.join(build, `boot/vmlinuz-${release}`), path.join(dir, "vmlinuz"));
  fs.rmSync(build, { recursive: true });
}

/** A module's file and its name may differ in these two letters. */
function spelling(name: string): string {
  return name.replaceAll("-", "_");
}

/** Builds the sample driver against the kernel's headers, with the compiler that the kernel was built with. */
function makeMtty(build: string, release: string): string {
  const source = path.join(build, "usr/src/mtty");
  fs.mkdirSync(source);
  const archive = fs.readdirSync(path.join(build, "usr/src")).find((name) => /^linux-source-.*\.tar\.xz$/.test(name));
  // The archive is large, and tar stops at the file: that xz then finds its pipe closed is no failure.
  const take = 'chroot "$0" xz -T0 -dc "/usr/src/$1" 2>/dev/null | tar -x -O --wildcards --occurrence=1 "*/$2" >"$3"';
  must("sh", ["-c", take, build, `${archive}`, MTTY, path.join(source, "mtty.c")]);
  fs.writeFileSync(path.join(source, "Makefile"), "obj-m := mtty.o\n");
  fs.symlinkSync("mawk", path.join(build, "usr/bin/awk"));
  for (const folder of ["dev", "proc", "tmp"]) fs.mkdirSync(path.join(build, folder), { recursive: true });
  const compile =
    'mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" && exec chroot "$0" make -C "$1" M=/usr/src/mtty modules';
  const headers = `/usr/src/linux-headers-${release}`;
  must("unshare", ["--mount", "--propagation", "private", "sh", "-c", compile, build, headers]);
  return path.join(source, "mtty.ko");
}

/** The VM's root beside what each test puts there: busybox with all its applets, OCI runtimes, modules. */
function rootEntries(kernel: string): Map<string, Entry> {
  const entries = new Map<string, Entry>();
  const forky = engineRoot("forky");
  for (const name of ["dev", "etc", "mnt", "proc", "root", "run", "srv", "sys", "tmp", "var/log"]) {
    entries.set(name, { kind: "folder" });
  }
  for (const name of ["bin", "lib", "lib64", "sbin"]) {
    entries.set(`usr/${name}`, { kind: "folder" });
    entries.set(name, { kind: "link", target: `usr/${name}` });
  }
  // The first program's input and output, which the kernel opens before anything is mounted.
  entries.set("dev/console", { kind: "node", mode: 0o600, major: 5, minor: 1 });
  entries.set("etc/passwd", text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"));
  entries.set("etc/group", text("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"));
  const busybox = path.join(forky, "usr/bin/busybox");
  for (const applet of must(busybox, ["--list"]).trim().split("\n")) {
    entries.set(`usr/bin/${applet}`, { kind: "link", target: "busybox" });
  }
  entries.set("usr/bin/busybox", fileEntry(busybox));
  for (const [place, [suite, program]] of Object.entries(RUNTIMES)) {
    const root = engineRoot(suite);
    entries.set(place, fileEntry(path.join(root, program)));
    // The newer suite's libraries serve both: theirs stand first, and symbols are only added to.
    for (const match of must("chroot", [root, LOADER, "--list", program]).matchAll(/(\/\S+) \(0x/g)) {
      const file = (match[1] as string).slice(1).replace(/^(lib|lib64)\//, "usr/$1/");
      if (!entries.has(file)) entries.set(file, fileEntry(fs.realpathSync(path.join(forky, file))));
    }
  }
  const modules = path.join(kernel, "modules");
  for (const name of fs.readdirSync(modules))
    entries.set(`usr/lib/modules/${name}`, fileEntry(path.join(modules, name)));
  return entries;
}

function text(content: string): Entry {
  return { kind: "file", mode: 0o644, data: Buffer.from(content) };
}
