/** What sluiced counts, for Prometheus: names after its conventions, all in seconds and totals, with the prefix `sluice_`. */

import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { BUILD } from "../sys/version.ts";

/** Seconds. Most answers take less than a millisecond; an engine gives up after two seconds. */
const ANSWER_BUCKETS = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2];
/** Seconds. The kubelet answers from memory, and is asked with a deadline. */
const EVIDENCE_BUCKETS = [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5];

/** Counts that wait for somebody who asks. */
const MOST_WAITING = 100;

/**
 * How a decision ended: it was given something, it was refused, it starts and there is a line on it in the audit log, or
 * it has nothing to do with GPUs.
 */
export type Outcome = "granted" | "refused" | "reported" | "untouched";

export class Metrics {
  readonly #registry = new Registry();
  readonly #later: (() => void)[] = [];
  readonly #decisions = this.#counter("sluice_decisions_total", "Decisions on containers, by what came of them", [
    "door",
    "outcome",
    "code",
  ]);
  readonly #answers = new Histogram({
    name: "sluice_create_container_seconds",
    help: "Time in which NRI's CreateContainer was answered",
    buckets: ANSWER_BUCKETS,
    registers: [this.#registry],
  });
  readonly #evidence = new Histogram({
    name: "sluice_evidence_seconds",
    help: "Time in which a container's allocation was known, or was found not to be",
    labelNames: ["outcome"],
    buckets: EVIDENCE_BUCKETS,
    registers: [this.#registry],
  });
  readonly #questions = this.#counter("sluice_questions_total", "Questions on the socket, by what came of them", [
    "ask",
    "outcome",
  ]);
  readonly #registered = this.#gauge("sluice_nri_registered", "Whether sluiced is registered with the engine's NRI");
  readonly #registrations = this.#counter("sluice_nri_registrations_total", "Registrations with the engine's NRI");
  readonly #losses = this.#counter("sluice_nri_disconnects_total", "Connections to the engine's NRI that ended");

  /**
   * @param containers how many containers have a receipt, by door and mechanism; asked at each scrape
   */
  constructor(containers: () => readonly { door: string; mechanism: string; count: number }[]) {
    this.#gauge("sluice_build_info", "1, with the version as a label", ["version"]).set({ version: BUILD }, 1);
    const labels = ["door", "mechanism"] as const;
    this.#gauge("sluice_containers", "Living containers that were given devices", [...labels], (gauge) => {
      gauge.reset();
      for (const { count, ...of } of containers()) gauge.set(of, count);
    });
    this.#gauge("process_resident_memory_bytes", "Resident memory", [], (gauge) =>
      gauge.set(process.memoryUsage.rss()),
    );
    this.#gauge("nodejs_heap_used_bytes", "Objects of JavaScript", [], (gauge) =>
      gauge.set(process.memoryUsage().heapUsed),
    );
    this.#gauge("process_start_time_seconds", "When sluiced was started, since the epoch").set(
      Date.now() / 1000 - process.uptime(),
    );
    this.#counter("process_cpu_seconds_total", "Processor time, of the user and of the system", [], (counter) => {
      const { user, system } = process.cpuUsage();
      counter.reset();
      counter.inc((user + system) / 1e6);
    });
  }

  /** @param code of the error, where it was refused */
  decided(door: string, outcome: Outcome, code = ""): void {
    this.#afterwards(() => this.#decisions.inc({ door, outcome, code }));
  }

  answeredCreateContainer(seconds: number): void {
    this.#afterwards(() => this.#answers.observe(seconds));
  }

  /** @param outcome `remembered`: nobody had to wait; `asked`: for the kubelet, or for what was asked ahead */
  evidence(outcome: "remembered" | "asked" | "unavailable", seconds: number): void {
    this.#afterwards(() => this.#evidence.observe({ outcome }, seconds));
  }

  asked(ask: string, outcome: string): void {
    this.#questions.inc({ ask, outcome });
  }

  registered(): void {
    this.#registered.set(1);
    this.#registrations.inc();
  }

  disconnected(): void {
    this.#registered.set(0);
    this.#losses.inc();
  }

  /** The page that Prometheus reads, and its content type. */
  async page(): Promise<{ readonly type: string; readonly text: string }> {
    this.#catchUp();
    return { type: this.#registry.contentType, text: await this.#registry.metrics() };
  }

  /** What was counted, by the names of the counters and their labels: `decisions{door="nri",outcome="granted"}`. */
  async counts(): Promise<Readonly<Record<string, number>>> {
    this.#catchUp();
    const counters = [this.#decisions, this.#questions, this.#registrations, this.#losses];
    const counts: Record<string, number> = {};
    for (const counter of counters) {
      const { name, values } = await counter.get();
      for (const { labels, value } of values) {
        const named = Object.entries(labels).filter(([, label]) => label !== "");
        const suffix = named.map(([label, text]) => `${label}=${JSON.stringify(text)}`).join(",");
        counts[suffix === "" ? name : `${name}{${suffix}}`] = value;
      }
    }
    return counts;
  }

  /** What a container would wait for is counted when somebody asks. */
  #afterwards(count: () => void): void {
    if (this.#later.push(count) === MOST_WAITING) setImmediate(() => this.#catchUp());
  }

  #catchUp(): void {
    for (const count of this.#later.splice(0)) count();
  }

  #counter<T extends string>(
    name: string,
    help: string,
    labelNames: T[] = [],
    collect?: (counter: Counter<T>) => void,
  ): Counter<T> {
    const counter: Counter<T> = new Counter({
      name,
      help,
      labelNames,
      registers: [this.#registry],
      ...(collect === undefined ? {} : { collect: () => collect(counter) }),
    });
    return counter;
  }

  /** @param collect sets it at each scrape */
  #gauge<T extends string>(
    name: string,
    help: string,
    labelNames: T[] = [],
    collect?: (gauge: Gauge<T>) => void,
  ): Gauge<T> {
    const gauge: Gauge<T> = new Gauge({
      name,
      help,
      labelNames,
      registers: [this.#registry],
      ...(collect === undefined ? {} : { collect: () => collect(gauge) }),
    });
    return gauge;
  }
}
