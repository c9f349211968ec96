import { OsError, quote, SluiceError } from "../sys/error.ts";
import type { Sys } from "../sys/sys.ts";
import { rfc3339 } from "../sys/time.ts";
import type { Plan } from "./plan.ts";

/**
 * What was given to one container, kept while it lives in `<state>/receipts/<id>.json`: mode 0600 in a folder 0700, so
 * that only we (root, or the rootless user) can have written it. A container's stamp is worth nothing without it.
 */
export interface Receipt extends Omit<Plan, "text" | "specs"> {
  readonly version: 1;
  readonly id: string;
  /** Which door acted. */
  readonly door: string;
  /** Its config.json. */
  readonly config: string;
  /** The OCI runtime's `--root`, empty for its default: ids are unique only within one. */
  readonly runtimeRoot: string;
  /** Whether the container has a PID namespace of its own, so that with its first process all end; absent for no. */
  readonly ownPids?: true;
  /** RFC 3339, UTC. */
  readonly time: string;
}

/** As runc and crun take container ids, and safe as a file name. */
const ID = /^[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,200}$/;

/** Where a container's receipt is; `undefined` for an id that can have none. */
export function receiptPath(stateDir: string, id: string): string | undefined {
  return ID.test(id) ? `${stateDir}/receipts/${id}.json` : undefined;
}

/** Bytes; a receipt repeats the edits of a plan. */
const LIMIT = 16 << 20;

/** What parts a receipt's head from its plan: within a JSON string, the quotes would be escaped. */
const PLAN = ',"devices":';
/** Bytes in which the head is looked for first. */
const HEAD = 1024;
const NOT_ASCII = /[^\0-\x7f]/;

export class Receipts {
  readonly #sys: Sys;
  readonly #state: string;
  readonly #dir: string;
  /** Whether the folder has been looked at. Nobody but us can put another one there. */
  #isOurs = false;

  constructor(sys: Sys, stateDir: string) {
    this.#sys = sys;
    this.#state = stateDir;
    this.#dir = `${stateDir}/receipts`;
  }

  /**
   * The receipt of a container; `undefined` where there is none that counts: unreadable, not ours, or not as it was
   * written, which its digest tells.
   */
  read(id: string): Receipt | undefined {
    let plan = "";
    const receipt = this.#parse(id, (path) => {
      const text = this.#sys.readText(path, LIMIT);
      plan = `{${text.slice(text.indexOf(PLAN) + 1).trimEnd()}`;
      return text;
    });
    return receipt !== undefined && receipt.digest === this.#sys.sha256(plan) ? receipt : undefined;
  }

  /**
   * The containers that have a receipt, by id, in the order of the bytes.
   * @throws OsError where the folder cannot be read
   */
  ids(): string[] {
    return (this.#sys.list(this.#dir) ?? []).flatMap(({ name }) => /^([^.].*)\.json$/.exec(name)?.[1] ?? []);
  }

  /** @param read gives the JSON to parse */
  #parse(id: string, read: (path: string) => string): Receipt | undefined {
    const path = receiptPath(this.#state, id);
    if (path === undefined) return undefined;
    const sys = this.#sys;
    try {
      const folder = sys.lstat(this.#dir);
      if (folder?.kind !== "dir" || folder.uid !== sys.euid || (folder.mode & 0o077) !== 0) return undefined;
      const receipt = JSON.parse(read(path)) as Receipt | null;
      return receipt?.version === 1 && receipt.id === id ? receipt : undefined;
    } catch (thrown) {
      if (thrown instanceof OsError || thrown instanceof SyntaxError) return undefined;
      throw thrown;
    }
  }

  /**
   * Writes the receipt, replacing an older one of the same container in one step.
   * @throws SluiceError E_RECEIPT where the id or the folder will not do
   */
  write(id: string, door: string, config: string, runtimeRoot: string, plan: Plan, ownPids = false): void {
    const path = receiptPath(this.#state, id);
    if (path === undefined) {
      throw new SluiceError(
        "E_RECEIPT",
        `container id ${quote(id)} cannot name a receipt`,
        "use letters, digits, _ + - .",
      );
    }
    const sys = this.#sys;
    const time = rfc3339(sys.now());
    const pids = ownPids || undefined; // which JSON leaves out
    const head = { version: 1, id, door, config, runtimeRoot, ownPids: pids, time, digest: plan.digest };
    // The plan's own JSON is its second half: written once, as it was digested.
    const text = `${JSON.stringify(head).slice(0, -1)},${plan.text.slice(1)}\n`;
    const draft = `${this.#dir}/.${id}.new`;
    try {
      this.#createIn(draft, text);
      sys.rename(draft, path);
    } catch (thrown) {
      if (!(thrown instanceof OsError)) throw thrown;
      throw new SluiceError(
        "E_RECEIPT",
        `the receipt of container ${quote(id)} cannot be written: ${thrown.message}`,
        `make ${this.#dir} a folder that this user can write to (rootless: set XDG_RUNTIME_DIR)`,
        thrown,
      );
    }
  }

  /**
   * Removes the receipt of a container that does not live, if the given door wrote it, or if its bundle is gone: an engine
   * that is killed may forget a container, and then nobody deletes it.
   */
  sweep(id: string, door: string): void {
    const head = this.head(id);
    const path = receiptPath(this.#state, id);
    if (head === undefined || path === undefined) return;
    // A relative path is one of the door's own working folder.
    const isGone = head.config.startsWith("/") && this.#sys.lstat(head.config) === undefined;
    if (head.door === door || isGone) this.#unlink(path);
  }

  /** The receipt without its plan, which is long; `undefined` as with `read`, but that it may have been changed. */
  head(id: string): Omit<Receipt, "devices" | "edits"> | undefined {
    return this.#parse(id, (path) => {
      let text = this.#sys.readBytes(path, 0, HEAD);
      let end = text.indexOf(PLAN);
      if (end < 0 || NOT_ASCII.test(text)) {
        text = this.#sys.readText(path, LIMIT);
        end = text.indexOf(PLAN);
      }
      return `${text.slice(0, end)}}`;
    });
  }

  /** Removes the receipt of a container that is gone. One of a namesake under another runtime root stays. */
  release(id: string, runtimeRoot: string): void {
    if (this.head(id)?.runtimeRoot === runtimeRoot) this.remove(id);
  }

  remove(id: string): void {
    const path = receiptPath(this.#state, id);
    if (path !== undefined) this.#unlink(path);
  }

  #createIn(draft: string, text: string): void {
    if (this.#isOurs) {
      try {
        this.#createFresh(draft, text);
        return;
      } catch (thrown) {
        if (!(thrown instanceof OsError && thrown.code === "ENOENT")) throw thrown;
      }
    }
    this.#makeFolder();
    this.#isOurs = true;
    this.#createFresh(draft, text);
  }

  #makeFolder(): void {
    const sys = this.#sys;
    const folder = sys.lstat(this.#dir);
    if (folder === undefined) {
      const parent = this.#dir.slice(0, this.#dir.lastIndexOf("/"));
      if (sys.lstat(parent) === undefined) this.#mkdir(parent, 0o755);
      this.#mkdir(this.#dir, 0o700);
    } else if (folder.kind !== "dir" || folder.uid !== sys.euid || (folder.mode & 0o077) !== 0) {
      throw new OsError("EPERM", "open (not a folder that is ours alone)", this.#dir);
    }
  }

  #mkdir(path: string, mode: number): void {
    try {
      this.#sys.mkdir(path, mode);
    } catch (thrown) {
      if (!(thrown instanceof OsError && thrown.code === "EEXIST")) throw thrown; // another start made it first
    }
  }

  /** Creates a file; what a killed start of the same container left under that name goes first. */
  #createFresh(path: string, text: string): void {
    try {
      this.#sys.createFile(path, text, 0o600);
    } catch (thrown) {
      if (!(thrown instanceof OsError)) throw thrown;
      this.#unlink(path);
      if (thrown.code !== "EEXIST") throw thrown;
      this.#sys.createFile(path, text, 0o600);
    }
  }

  #unlink(path: string): void {
    try {
      this.#sys.unlink(path);
    } catch (thrown) {
      if (!(thrown instanceof OsError)) throw thrown; // what is not there, or cannot go, is no worse than before
    }
  }
}
