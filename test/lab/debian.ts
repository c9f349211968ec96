/** Packages of Debian's suites, unpacked into folders. The machine's own package state is neither used nor changed. */

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { LAB, locked } from "./cache.ts";

export type Suite = "bookworm" | "trixie" | "forky";

export interface UnpackOptions {
  /** The named packages alone, without what they depend on. */
  withoutDependencies?: boolean;
  /** Packages that are left out although one of the others depends on them; what depends on them alone is still unpacked. */
  leaveOut?: readonly string[];
  /** Paths (tar's wildcards, without the leading slash) that are not unpacked, beside documents and translations. */
  exclude?: readonly string[];
}

/** Nothing in the lab reads these, and they are a third of all files. */
const DOCUMENTS = ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"];

/** Debian's lists change four times a day; an older copy names packages that the mirror no longer has. */
const LISTS_MS = 3600 * 1000;

/** Runs a command without input. @throws Error with what the command printed, where it fails */
export function must(command: string, args: readonly string[], options: { env?: NodeJS.ProcessEnv } = {}): string {
  const r = spawnSync(command, args, {
    ...options,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
    maxBuffer: 2 ** 28,
  });
  if (r.error !== undefined) throw new Error(`${command} does not start: ${r.error.message}`);
  if (r.status !== 0)
    throw new Error(`${command} ${args.join(" ")} ended with ${r.status ?? r.signal}:\n${r.stdout}${r.stderr}`);
  return r.stdout;
}

/**
 * Downloads packages of a Debian suite with all that they depend on (not what they recommend) and unpacks them into
 * `root`. No maintainer script runs. The suite's signature is verified with the machine's Debian keyring and each
 * package's checksum by the suite's lists.
 *
 * @throws Error where the machine has no apt, no Debian mirror or no key of that suite; it says what to do
 */
export function unpack(root: string, suite: Suite, packages: readonly string[], options: UnpackOptions = {}): void {
  const archives = download(suite, packages, options);
  mergeUsr(root);
  const exclude = [...DOCUMENTS, ...(options.exclude ?? [])].map((pattern) => `--exclude=./${pattern}`);
  // Two at a time: decompression takes most of it. A package's folders may lie where `root` has a link (merged /usr).
  const extract =
    'package=$1; shift; dpkg-deb --fsys-tarfile "$package" | tar -x -C "$0" --keep-directory-symlink "$@"';
  const args = ["-r", "-P", "2", "-I", "{}", "bash", "-euo", "pipefail", "-c", extract, root, "{}", ...exclude];
  const r = spawnSync("xargs", args, { input: archives.join("\n"), encoding: "utf8" });
  if (r.status !== 0) throw new Error(`packages of ${suite} do not unpack into ${root}:\n${r.stdout}${r.stderr}`);
  if (fs.existsSync(path.join(root, "etc/ld.so.conf"))) must("/sbin/ldconfig", ["-r", root]);
}

/** The files of the packages, downloaded where they are not there from before. */
function download(suite: Suite, packages: readonly string[], options: UnpackOptions): string[] {
  const dir = path.join(LAB, "apt", suite);
  return locked(path.join(LAB, "apt", `.${suite}.lock`), () => {
    if (!fs.existsSync(path.join(dir, "ready")) || age(path.join(dir, "ready")) > LISTS_MS) update(dir, suite);
    try {
      return fetch(dir, packages, options);
    } catch {
      // The mirror has moved on since the lists were read. What is still wrong then, the second try says.
      update(dir, suite);
      return fetch(dir, packages, options);
    }
  });
}

function age(file: string): number {
  return Date.now() - fs.statSync(file).mtimeMs;
}

function fetch(dir: string, packages: readonly string[], options: UnpackOptions): string[] {
  const env = { ...process.env, APT_CONFIG: path.join(dir, "apt.conf"), LC_ALL: "C" };
  const command = options.withoutDependencies
    ? ["download", ...packages]
    : ["install", "-y", "--no-install-recommends", "--download-only", ...packages];
  // It names only what is not downloaded yet; of an empty folder, that is everything.
  const nothing = `Dir::Cache::archives=${path.join(dir, "state")}`;
  const uris = must("apt-get", ["-qq", "--print-uris", "-o", nothing, ...command], { env });
  const names = [...uris.matchAll(/^'\S+' (\S+\.deb) \d+ /gm)].map((match) => match[1] as string);
  const archives = path.join(dir, "archives");
  const missing = names.filter((name) => !fs.existsSync(path.join(archives, name)));
  if (missing.length > 0) {
    const r = spawnSync("apt-get", ["-qq", ...command], { env, cwd: archives, encoding: "utf8" });
    if (r.status !== 0) throw new Error(`apt-get ${command.join(" ")} failed:\n${r.stdout}${r.stderr}`);
  }
  const leftOut = new Set(options.leaveOut);
  const unpacked = names.filter((name) => !leftOut.has(name.slice(0, name.indexOf("_"))));
  return unpacked.map((name) => path.join(archives, name));
}

/** Reads the suite's lists from the first of the machine's archives that has it, signed. */
function update(dir: string, suite: Suite): void {
  const keyring = ["gpg", "pgp"]
    .map((ending) => `/usr/share/keyrings/debian-archive-keyring.${ending}`)
    .find((file) => fs.existsSync(file));
  if (keyring === undefined) {
    throw new Error("no keyring to verify Debian's suites with; install the package debian-archive-keyring");
  }
  const tried: string[] = [];
  for (const uri of mirrors()) {
    writeConfig(dir, `deb [signed-by=${keyring}] ${uri} ${suite} main`);
    const env = { ...process.env, APT_CONFIG: path.join(dir, "apt.conf"), LC_ALL: "C" };
    const r = spawnSync("apt-get", ["update", "-qq", "--error-on=any"], { env, encoding: "utf8" });
    if (r.status === 0) {
      fs.writeFileSync(path.join(dir, "ready"), `${uri}\n`);
      return;
    }
    tried.push(`${uri}:\n${r.error?.message ?? r.stderr}`);
  }
  throw new Error(
    `Debian's suite ${suite} is not to be had, or not signed by a key of ${keyring}. Name a Debian mirror with ` +
      `SLUICE_DEBIAN_MIRROR, or install a newer debian-archive-keyring. Tried:\n${tried.join("") || "no mirror at all\n"}`,
  );
}

/** The archives that the machine's apt reads; `apt-get indextargets` tells them without any list being there. */
function mirrors(): string[] {
  const named = process.env["SLUICE_DEBIAN_MIRROR"];
  if (named) return [named.replace(/\/+$/, "")];
  const format = "$(COMPONENT) $(REPO_URI)";
  const lines = must("apt-get", ["indextargets", "--format", format, "Created-By: Packages"]).split("\n");
  const uris = lines.flatMap((line) => /^main (\S+?)\/*$/.exec(line)?.[1] ?? []);
  return [...new Set(uris)].filter((uri) => !/security/.test(uri));
}

/** An apt with the machine's settings (proxies, credentials), but with sources, lists, state and caches of its own. */
function writeConfig(dir: string, source: string): void {
  fs.rmSync(path.join(dir, "lists"), { recursive: true, force: true });
  fs.rmSync(path.join(dir, "ready"), { force: true });
  for (const folder of ["lists/partial", "state", "archives/partial"]) {
    fs.mkdirSync(path.join(dir, folder), { recursive: true });
  }
  fs.writeFileSync(path.join(dir, "sources.list"), `${source}\n`);
  const machine = must("apt-config", ["dump"])
    .split("\n")
    .filter((line) => !/^(APT::Update::(Pre|Post)-Invoke|DPkg::|Dir::(Cache|State))/i.test(line));
  const own = {
    "Dir::Etc::main": "/dev/null",
    "Dir::Etc::parts": "/dev/null",
    "Dir::Etc::sourcelist": path.join(dir, "sources.list"),
    "Dir::Etc::sourceparts": "/dev/null",
    "Dir::Etc::preferences": "/dev/null",
    "Dir::Etc::preferencesparts": "/dev/null",
    "Dir::State": path.join(dir, "state"),
    "Dir::State::lists": path.join(dir, "lists"),
    // Nothing counts as installed, so that all of a package's dependencies come along.
    "Dir::State::status": "/dev/null",
    "Dir::Cache": dir,
    "Dir::Cache::archives": path.join(dir, "archives"),
    "Acquire::Languages": "none",
    "Acquire::Retries": "2",
    // A chain of dependencies that a recommended package would satisfy is not one that we want.
    "APT::Install-Recommends": "false",
    "APT::Sandbox::User": "root",
    "Debug::NoLocking": "true",
  };
  const lines = Object.entries(own).map(([name, value]) => `${name} "${value}";`);
  fs.writeFileSync(path.join(dir, "apt.conf"), `${[...machine, ...lines].join("\n")}\n`);
}

/** Debian's /bin, /lib and /sbin are links into /usr; its package base-files, which makes them, need not be among ours. */
function mergeUsr(root: string): void {
  for (const name of ["bin", "lib", "lib64", "sbin"]) {
    fs.mkdirSync(path.join(root, "usr", name), { recursive: true });
    const link = path.join(root, name);
    if (fs.lstatSync(link, { throwIfNoEntry: false }) === undefined) fs.symlinkSync(`usr/${name}`, link);
  }
}
