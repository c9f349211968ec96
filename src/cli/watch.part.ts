/**
 * `sluice cdi generate --watch`: keeps the specs right. It looks again and again at what they were made from. It polls,
 * because cutting MIG raises no uevent, and neither procfs nor sysfs has inotify. A look is some hundred small reads.
 */

import type { Made } from "../host/cdi-spec.ts";
import { factDifferences, specDifferences } from "../host/difference.ts";
import { changedFacts, type Fact, lookAt, originPath } from "../host/origin.ts";
import type { Published } from "../host/publish.ts";
import { errorLine, printable, SluiceError } from "../sys/error.ts";
import type { Sys } from "../sys/sys.ts";
import { make, problemsOf, report, type Task, taskOf, tell, write } from "./generate.part.ts";
import { type Parsed, UsageError } from "./options.ts";

/** Milliseconds between two looks. */
const INTERVAL = 500;
/** Looks after which what has failed is tried again although nothing has changed. */
const RETRY = 10;

/**
 * Never returns. A signal ends it at any moment, without harm: each file is written in one step.
 *
 * @throws UsageError
 */
export function watch(sys: Sys, parsed: Parsed): never {
  if (parsed.flag("json")) throw new UsageError("--watch tells what it does as it does it: it has no --json");
  const task = taskOf(sys, parsed);
  if ("file" in task.output && task.output.file === "-") {
    throw new UsageError("--watch keeps files right: name a file or a folder with --output");
  }
  const watcher = new Watcher(sys, task);
  for (;;) {
    watcher.look();
    sys.sleep(INTERVAL);
  }
}

/** What a pass has made and written. */
interface Pass {
  readonly made: Made;
  readonly done: readonly Published[];
  /** The stamps of what it has left on disk. */
  readonly files: readonly Fact[];
}

class Watcher {
  readonly #sys: Sys;
  readonly #task: Task;
  /** The folder that is written to. */
  readonly #folder: string;
  /** The last pass that did what it should. */
  #last: Pass | undefined;
  /** The folder as it was before that pass: where the pass itself has changed it, the next one finds all in order. */
  #before: Fact | undefined;
  /** What was told of the last pass, and since; not to be told again as long as it is so. */
  #told = new Set<string>();
  /** Looks until the next try, where the last one failed. */
  #wait = 0;

  constructor(sys: Sys, task: Task) {
    this.#sys = sys;
    this.#task = task;
    const { output } = task;
    this.#folder = "dir" in output ? output.dir : output.file.replace(/[^/]*$/, ".");
  }

  /** Makes and writes the specs, where something has changed since they were. */
  look(): void {
    if (!this.#isDue()) return;
    this.#before = this.#stampOf(this.#folder);
    const touched = changedFacts(this.#sys, this.#last?.files ?? []);
    let pass: Pass;
    try {
      const made = make(this.#task);
      const done = write(this.#task, made);
      pass = { made, done, files: this.#filesOf(made, done) };
    } catch (thrown) {
      if (!(thrown instanceof SluiceError)) throw thrown;
      const line = errorLine(thrown);
      if (!this.#told.has(line)) tell(this.#sys, [line]);
      this.#told.add(line);
      this.#before = this.#stampOf(this.#folder);
      this.#wait = RETRY;
      return;
    }
    const { made, done } = pass;
    if (this.#last === undefined) report(this.#sys, this.#task, made, done);
    else for (const line of this.#changes(this.#last, pass, touched)) this.#sys.out(`${line}\n`);
    const problems = problemsOf(made, done, this.#sys.euid);
    tell(
      this.#sys,
      problems.filter((line) => !this.#told.has(line)),
    );
    this.#told = new Set(problems);
    this.#last = pass;
    this.#wait = 0;
  }

  /** A line for each thing that is not as it was at an earlier pass. @param touched files that others have */
  #changes(last: Pass, { made, done }: Pass, touched: readonly Fact[]): Iterable<string> {
    const { host } = this.#task.machine;
    const lines = new Set(factDifferences(host, last.made.facts));
    for (const kind of new Set([...last.made.specs, ...made.specs].map(({ spec }) => spec.kind))) {
      const was = last.made.specs.find(({ spec }) => spec.kind === kind)?.spec;
      const now = made.specs.find(({ spec }) => spec.kind === kind)?.spec;
      for (const line of specDifferences(host, was, now)) lines.add(line);
    }
    for (const { path } of touched) {
      // What is not ours to write any more, the problems tell.
      const isOurs = done.some(
        (one) => one.state === "written" && (one.path === path || originPath(one.path) === path),
      );
      if (isOurs) lines.add(`${printable(path)} was changed or deleted, and is written anew`);
    }
    return lines;
  }

  #isDue(): boolean {
    const { machine } = this.#task;
    if (this.#before === undefined || changedFacts(this.#sys, [this.#before]).length > 0) return true;
    if (this.#wait > 0) return --this.#wait === 0;
    if (this.#last === undefined) return true;
    const { made, files } = this.#last;
    return changedFacts(machine.host, made.facts).length > 0 || changedFacts(this.#sys, files).length > 0;
  }

  #filesOf(made: Made, done: readonly Published[]): Fact[] {
    const specs = done.filter(({ state }) => state === "written" || state === "unchanged");
    const paths = specs.flatMap(({ path }) => [path, originPath(path)]);
    if (made.params !== undefined && specs.length > 0) paths.push(this.#task.options.params);
    return paths.map((path) => this.#stampOf(path));
  }

  #stampOf(path: string): Fact {
    return { look: "stamp", path, saw: lookAt(this.#sys, "stamp", path) };
  }
}
