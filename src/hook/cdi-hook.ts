import { readElfHeader } from "../host/elf.ts";
import { addToLdCache, type CachedLibrary, cacheFlags } from "../host/ld-cache.ts";
import { OsError, printable, quote, reasonOf, SluiceError } from "../sys/error.ts";
import { EXIT } from "../sys/exit.ts";
import type { Sys, Tree } from "../sys/sys.ts";
import { Rootfs, rootfsOf } from "./rootfs.ts";

/*
 * The one hook of the CDI specs that Sluice writes for NVIDIA's driver: what mounts cannot say. It is an OCI
 * createContainer hook: it runs in the container's mount namespace, with everything mounted, before pivot_root.
 *
 * The container's files are its image's, and may be hostile. Everything is opened beneath the root, nothing of the image
 * runs, and nothing in the environment counts. What a container needs to find its GPU must work, or the container does
 * not start; the rest is told on standard error.
 */

const USAGE =
  "sluice cdi-hook --driver VERSION [--library FOLDER/FILE=SONAME[:FILE=SONAME]...]... " +
  "[--link FOLDER/NAME=TARGET[:NAME=TARGET]...]... [--params FILE] < STATE";
/** Other characters are in no folder of a driver's libraries, and some would mean something in ld.so.conf. */
const FOLDER = /^\/[\w.+@~/-]*$/;

const CACHE = "/etc/ld.so.cache";
/** Bytes. A cache of 5000 libraries has a tenth of that. */
const MAX_CACHE = 4 << 20;
const CONFIGURATION_DIR = "/etc/ld.so.conf.d";
const CONFIGURATION = `${CONFIGURATION_DIR}/00-sluice.conf`;
const COMPATIBILITY = "/usr/local/cuda/compat";
const PARAMS = "/proc/driver/nvidia/params";
/** glibc's loaders. An image without any is of musl, or static, and reads no cache. */
const LOADERS = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-linux.so.2"];

const WRITABLE = "put a layer that can be written to over the container's file system, as engines do";

/** Links in a folder of the container, each to a file beside it; for libraries, the names that programs ask for. */
interface Links {
  readonly folder: string;
  readonly names: readonly string[];
  readonly targets: readonly string[];
}

interface Task {
  /** The driver's version. */
  readonly driver: string;
  /** SONAMEs, and the driver's files. */
  readonly libraries: readonly Links[];
  readonly links: readonly Links[];
  /** A file of the machine to be what the container sees as the driver's parameters; or empty. */
  readonly params: string;
}

export function cdiHook(sys: Sys): number {
  const task = parse(sys.args.slice(/(?:^|\/)sluice-cdi-hook$/.test(sys.args[0] ?? "") ? 1 : 2));
  if (typeof task === "string") {
    sys.err(`sluice: E_USAGE: ${task}; usage: ${USAGE}\n`);
    return EXIT.usage;
  }
  const rootfs = new Rootfs(sys, rootfsOf(sys, filesOf(task.libraries)));
  const { tree } = rootfs;
  const tell = (text: string): void => sys.err(printable(`sluice: ${text}`).concat("\n"));
  if (task.params !== "") hideParams(tree, task.params);
  const libraries = linkLibraries(rootfs, task.libraries);
  const links = makeLinks(rootfs, task.links, tell);
  const folders = [...new Set(libraries.map(({ folder }) => folder))].filter(isSearched);
  if (folders.length === 0) return EXIT.done;
  const newer = forwardCompatible(tree, task.driver);
  const searched = newer.length === 0 ? folders : [COMPATIBILITY, ...folders];
  const cached = [...newer, ...cachedLibraries(tree, [...libraries, ...links], tell)];
  updateCache(rootfs, cached, folders, sys, tell);
  writeConfiguration(rootfs, searched, tell);
  return EXIT.done;
}

function* filesOf(libraries: readonly Links[]): Iterable<string> {
  for (const { folder, targets } of libraries) for (const file of targets) yield `${folder}/${file}`;
}

/** What the arguments say, or what is wrong with them. */
function parse(args: readonly string[]): Task | string {
  const libraries: Links[] = [];
  const links: Links[] = [];
  let driver = "";
  let params = "";
  const bad = (name: string, value: string): string => `${quote(name)} ${quote(value)}`;
  for (let i = 0; i < args.length; i += 2) {
    const name = args[i] as string;
    const value = args[i + 1] ?? "";
    if (name === "--library") {
      const list = parseLinks(value, true);
      if (list === undefined) return `${bad(name, value)} is not an absolute PATH and a name, with "=" between`;
      if (!FOLDER.test(list.folder)) return `${bad(name, value)} is in a folder with an unusual name`;
      if (list.names.some((soname) => soname.includes("/"))) return `${bad(name, value)} has a SONAME with a slash`;
      libraries.push(list);
    } else if (name === "--link") {
      const list = parseLinks(value, false);
      if (list === undefined) return `${bad(name, value)} is not an absolute PATH and a name, with "=" between`;
      links.push(list);
    } else if (name === "--driver") {
      if (driver !== "" || !/^\d+(?:\.\d+)*$/.test(value)) return `${bad(name, value)} is not one version`;
      driver = value;
    } else if (name === "--params") {
      if (params !== "" || value.charCodeAt(0) !== SLASH) return `${bad(name, value)} is not one absolute path`;
      params = value;
    } else {
      return `unknown argument ${quote(name)}`;
    }
  }
  return driver === "" ? "--driver is missing" : { driver, libraries, links, params };
}

const SLASH = 0x2f;

/**
 * `FOLDER/NAME=OTHER:NAME=OTHER...`, all of one folder. Many in one argument, since the runtime reads and writes them
 * several times, and we would read each.
 */
function parseLinks(value: string, isLibraries: boolean): Links | undefined {
  const items = value.split(":");
  const [first = ""] = items;
  const slash = first.lastIndexOf("/", first.indexOf("="));
  if (first.charCodeAt(0) !== SLASH || slash < 0) return undefined;
  const files: string[] = [];
  const others: string[] = [];
  let start = slash + 1;
  for (let i = 0; i < items.length; i++) {
    const item = items[i] as string;
    const equals = item.indexOf("=", start);
    if (equals <= start || equals + 1 === item.length) return undefined;
    files.push(item.slice(start, equals));
    others.push(item.slice(equals + 1));
    start = 0;
  }
  const folder = value.slice(0, slash);
  return isLibraries ? { folder, names: others, targets: files } : { folder, names: files, targets: others };
}

type Tell = (text: string) => void;

/** The driver's user-space half reads there whether it may make the nodes of all GPUs by itself; it may not. */
function hideParams(tree: Tree, params: string): void {
  try {
    if (tree.lstat(PARAMS) !== undefined) tree.bindOver(params, PARAMS);
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
    throw new SluiceError(
      "E_HOOK_PARAMS",
      `${quote(params)} cannot be mounted over ${PARAMS} of the container: ${reasonOf(thrown)}`,
      'run "sluice cdi generate", which writes the file; the kernel must be Linux 5.12 or later',
      thrown,
    );
  }
}

/** Links those libraries that were mounted: a container that asked for less than everything has some of them only. */
function linkLibraries(rootfs: Rootfs, libraries: readonly Links[]): Links[] {
  return libraries.flatMap((group) => {
    try {
      return linkThere(rootfs, group);
    } catch (thrown) {
      if (!(thrown instanceof OsError)) throw thrown;
      throw linkError(thrown.path, thrown);
    }
  });
}

/** Makes those links whose targets are there, and gives them. @throws OsError with the path of the link or the folder */
function linkThere(rootfs: Rootfs, { folder, names, targets }: Links): Links[] {
  let there: boolean[] = [];
  try {
    rootfs.change((tree) => {
      there = tree.links(folder, names, targets);
    });
  } catch (thrown) {
    if (!(thrown instanceof OsError) || thrown.path !== folder || !/^(?:ENOENT|ENOTDIR|ELOOP)$/.test(thrown.code)) {
      throw thrown;
    }
  }
  if (!there.includes(true)) return [];
  if (!there.includes(false)) return [{ folder, names, targets }];
  const isThere = (_: string, i: number): boolean => there[i] === true;
  return [{ folder, names: names.filter(isThere), targets: targets.filter(isThere) }];
}

function linkError(path: string, error: OsError): SluiceError {
  const remedy =
    error.code === "EROFS" ? `${WRITABLE}, or write the spec with --no-hook` : "look at what the image has there";
  return new SluiceError(
    "E_HOOK_LINK",
    `programs in the container would not find the driver's ${quote(path)}: ${reasonOf(error)}`,
    remedy,
    error,
  );
}

/** Makes the other links where they lead to something. Gives those to a file beside them. */
function makeLinks(rootfs: Rootfs, links: readonly Links[], tell: Tell): Links[] {
  const made: Links[] = [];
  for (const group of links) {
    const { folder, names, targets } = group;
    const beside = !targets.some((target) => target.includes("/"));
    try {
      if (beside) {
        made.push(...linkThere(rootfs, group));
        continue;
      }
    } catch (thrown) {
      if (!(thrown instanceof OsError)) throw thrown; // one of them: which, is found below
    }
    for (let i = 0; i < names.length; i++) {
      const [name, target] = [names[i] as string, targets[i] as string];
      try {
        if (makeLink(rootfs, folder, name, target) && beside) made.push({ folder, names: [name], targets: [target] });
      } catch (thrown) {
        if (!(thrown instanceof OsError)) throw thrown;
        tell(`${quote(`${folder}/${name}`)} is not linked: ${reasonOf(thrown)}`);
      }
    }
  }
  return made;
}

function makeLink(rootfs: Rootfs, folder: string, name: string, target: string): boolean {
  const end = target.charCodeAt(0) === SLASH ? target : plain(folder, target);
  if (rootfs.tree.stat(end) === undefined) return false;
  rootfs.change((tree) => {
    if (tree.stat(folder) === undefined) tree.mkdirs(folder, 0o755);
    tree.symlink(target, `${folder}/${name}`);
  });
  return true;
}

/** Where a link in a folder leads, as text: a folder on the way need not be there yet. */
function plain(folder: string, target: string): string {
  let from = folder;
  let rest = target;
  while (rest.slice(0, 3) === "../") {
    from = from.slice(0, from.lastIndexOf("/"));
    rest = rest.slice(3);
  }
  return `${from}/${rest}`;
}

/** Whether programs look in this folder by name: GBM's drivers are loaded by their path. */
function isSearched(folder: string): boolean {
  return !folder.endsWith("/gbm");
}

/**
 * CUDA's forward compatibility: images bring the user-space half of a newer driver, which works with an older driver in
 * the kernel. Where its major version is higher than this driver's, it comes first, as with NVIDIA's toolkit.
 */
function forwardCompatible(tree: Tree, driver: string): CachedLibrary[] {
  const names = namesIn(tree, COMPATIBILITY);
  const versions = names.flatMap((name) => /^libcuda\.so\.(\d{1,6})\.\d[\d.]*$/.exec(name)?.[1] ?? []);
  const newest = versions.reduce((newest, version) => Math.max(newest, Number(version)), 0);
  if (newest <= Number.parseInt(driver, 10)) return [];
  return names.flatMap((name) => {
    if (!/^lib[\w.+-]+\.so\.\d+$/.test(name)) return [];
    const path = `${COMPATIBILITY}/${name}`;
    const flags = flagsOf(tree, path);
    return flags === undefined ? [] : [{ path, flags }];
  });
}

function namesIn(tree: Tree, folder: string): string[] {
  try {
    return tree.list(folder)?.map(({ name }) => name) ?? [];
  } catch (thrown) {
    if (thrown instanceof OsError) return [];
    throw thrown;
  }
}

function cachedLibraries(tree: Tree, libraries: readonly Links[], tell: Tell): CachedLibrary[] {
  const cached: CachedLibrary[] = [];
  for (const { folder, names } of libraries) {
    if (!isSearched(folder)) continue;
    const known = multiarchFlags(folder);
    for (let i = 0; i < names.length; i++) {
      const path = `${folder}/${names[i]}`;
      const flags = known ?? flagsOf(tree, path);
      if (flags === undefined) tell(`${quote(path)} is not in ${CACHE}: it is no library of a known processor`);
      else cached.push({ path, flags });
    }
  }
  return cached;
}

/** Debian's folders of libraries are of one processor each, which spares a look into the files. */
function multiarchFlags(folder: string): number | undefined {
  const place = folder.indexOf("-linux-gnu");
  const processor = place < 0 ? "" : folder.slice(folder.lastIndexOf("/", place) + 1, place);
  if (processor === "x86_64") return cacheFlags(62, 64);
  if (processor === "i386") return cacheFlags(3, 32);
  return processor === "aarch64" ? cacheFlags(183, 64) : undefined;
}

function flagsOf(tree: Tree, path: string): number | undefined {
  const elf = readElfHeader(tree, path);
  return elf && cacheFlags(elf.machine, elf.bits);
}

/** Puts the libraries into the loader's cache: `folders` are those of the driver that programs must find. */
function updateCache(
  rootfs: Rootfs,
  libraries: readonly CachedLibrary[],
  folders: readonly string[],
  sys: Sys,
  tell: Tell,
): void {
  const { tree } = rootfs;
  const { addCached } = sys;
  const old = readCache(tree, tell);
  if (old === undefined && !LOADERS.some((loader) => isThere(tree, loader))) return;
  const added = addToLdCache(old ?? "", libraries, addCached);
  if (added === undefined) tell(`the image's ${CACHE} is damaged, and is replaced`);
  const text = added ?? addToLdCache("", libraries, addCached);
  if (text === undefined || text === old) return;
  try {
    rootfs.change((writable) => {
      if (old === undefined) writable.mkdirs("/etc", 0o755);
      writable.writeBytes(CACHE, text, 0o644);
    });
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
    const what = `${CACHE} of the container cannot be written: ${reasonOf(thrown)}`;
    const hidden = folders.find((folder) => !folder.endsWith("/vdpau") && !isLoadersOwn(tree, folder));
    if (hidden !== undefined) {
      throw new SluiceError(
        "E_HOOK_CACHE",
        `${what}; programs would not find the driver's libraries in ${quote(hidden)}`,
        WRITABLE,
        thrown,
      );
    }
    tell(`${what}; programs find the driver's libraries all the same, "ldconfig -p" does not show them`);
  }
}

/** `undefined` where there is none, or nothing that the loader would read. */
function readCache(tree: Tree, tell: Tell): string | undefined {
  try {
    const text = tree.readBytes(CACHE, 0, MAX_CACHE + 1);
    if (text.length <= MAX_CACHE) return text;
    tell(`the image's ${CACHE} has more than ${MAX_CACHE} bytes, and is not read`);
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
    if (thrown.code !== "ENOENT") tell(`the image's ${CACHE} is not read: ${reasonOf(thrown)}`);
  }
  return undefined;
}

/** Whether the loader looks in this folder without a cache: in that of its C library it does, and in the one of /usr. */
function isLoadersOwn(tree: Tree, folder: string): boolean {
  return [folder, folder.replace(/^\/usr\//, "/")].some((place) => isThere(tree, `${place}/libc.so.6`));
}

function isThere(tree: Tree, path: string): boolean {
  try {
    return tree.stat(path) !== undefined;
  } catch (thrown) {
    if (thrown instanceof OsError) return false;
    throw thrown;
  }
}

/** So that an `ldconfig` in the container, as packages run it, keeps the folders in the cache. */
function writeConfiguration(rootfs: Rootfs, folders: readonly string[], tell: Tell): void {
  const text = `${folders.join("\n")}\n`;
  try {
    if (rootfs.tree.stat(CONFIGURATION_DIR)?.kind !== "dir" || isText(rootfs.tree, CONFIGURATION, text)) return;
    rootfs.change((tree) => tree.writeBytes(CONFIGURATION, text, 0o644));
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
    tell(`${CONFIGURATION} of the container is not written: ${reasonOf(thrown)}`);
  }
}

function isText(tree: Tree, path: string, text: string): boolean {
  const stat = tree.lstat(path);
  return stat?.kind === "file" && stat.size === text.length && tree.readBytes(path, 0, text.length) === text;
}
