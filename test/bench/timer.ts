/** Measuring programs with timer.c: cases side by side in one run, and statistics of what it gives. */

import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { ROOT } from "../support/simulated-host.ts";

export interface Case {
  name: string;
  env?: Record<string, string>;
  /** The lines of timer.c. */
  steps: string[][];
}

/** What one step of one case took, in milliseconds. */
export interface Series {
  /** From start to end, round by round; several where a case has several steps of the name. */
  rounds: number[][];
  /** As `rounds`, of a processor. */
  cpu: number[][];
  /** KiB, the largest seen of the program and those it waited for or became. */
  peakKiB: number;
}

/** Milliseconds. */
export interface Summary {
  min: number;
  median: number;
  p90: number;
}

/** Compiles a C program of this folder: static, since a small process starts others with less noise. */
export function buildProgram(name: string): string {
  const program = path.join(ROOT, `build/bench-${name}`);
  const flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-static"];
  execFileSync("cc", [...flags, "-o", program, path.join(ROOT, `test/bench/${name}.c`)], { stdio: "inherit" });
  return program;
}

export class Timer {
  readonly #timer: string;
  readonly #dir: string;

  /** @param dir where the scripts and their output go */
  constructor(timer: string, dir: string) {
    this.#timer = timer;
    this.#dir = dir;
  }

  /**
   * Runs all cases alternately; two rounds more than are counted, since the first ones fill caches.
   * @returns case -> step -> what was measured
   * @throws Error with the output of the program that failed
   */
  measure(rounds: number, cases: Case[]): Map<string, Map<string, Series>> {
    const script = path.join(this.#dir, "timer.script");
    const output = path.join(this.#dir, "timer.output");
    const log = path.join(this.#dir, "timer.log");
    const lines = [["rounds", String(rounds + WARM_UP)], ...cases.flatMap(linesOf)];
    fs.writeFileSync(script, lines.map((words) => `${words.join("\t")}\n`).join(""));
    fs.writeFileSync(log, "");
    const { status, error } = spawnSync(this.#timer, [script, output, log], {
      stdio: "inherit",
      timeout: 600_000,
      env: ENVIRONMENT,
    });
    if (error !== undefined) throw error;
    if (status !== 0) throw new Error(`the measurement failed:\n${fs.readFileSync(log, "utf8").slice(-2000)}`);
    return collect(fs.readFileSync(output, "utf8"));
  }
}

const WARM_UP = 2;
/** Little, and the same wherever the benchmark runs. */
export const ENVIRONMENT = { PATH: process.env["PATH"] ?? "", LANG: "C.UTF-8" };

function linesOf({ name, env = {}, steps }: Case): string[][] {
  return [["case", name], ...Object.entries(env).map(([key, value]) => ["set", `${key}=${value}`]), ...steps];
}

function collect(output: string): Map<string, Map<string, Series>> {
  const cases = new Map<string, Map<string, Series>>();
  for (const line of output.trimEnd().split("\n")) {
    const [round = "", name = "", step = "", time, cpu, peak] = line.split("\t");
    const index = Number(round) - WARM_UP;
    if (index < 0) continue;
    const steps = cases.get(name) ?? new Map<string, Series>();
    const series = steps.get(step) ?? { rounds: [], cpu: [], peakKiB: 0 };
    series.rounds[index] = [...(series.rounds[index] ?? []), Number(time) / 1e6];
    series.cpu[index] = [...(series.cpu[index] ?? []), Number(cpu) / 1e6];
    series.peakKiB = Math.max(series.peakKiB, Number(peak));
    cases.set(name, steps.set(step, series));
  }
  return cases;
}

function quantile(sorted: number[], q: number): number {
  const at = (sorted.length - 1) * q;
  const [low, high] = [sorted[Math.floor(at)] ?? Number.NaN, sorted[Math.ceil(at)] ?? Number.NaN];
  return low + (high - low) * (at - Math.floor(at));
}

function sorted(samples: number[]): number[] {
  return [...samples].sort((a, b) => a - b);
}

export function summarize(rounds: number[][]): Summary {
  const all = sorted(rounds.flat());
  return { min: all[0] ?? Number.NaN, median: quantile(all, 0.5), p90: quantile(all, 0.9) };
}

/** The steps of a case as one: what a round spends in all of them. */
export function total(steps: Iterable<Series>): Series {
  const all = [...steps];
  const sums = (of: (series: Series) => number[][]) =>
    (all[0] === undefined ? [] : of(all[0])).map((_, i) => [
      all.flatMap((series) => of(series)[i] ?? []).reduce((a, b) => a + b, 0),
    ]);
  return {
    rounds: sums((series) => series.rounds),
    cpu: sums((series) => series.cpu),
    peakKiB: Math.max(...all.map((series) => series.peakKiB)),
  };
}

/**
 * How much longer one takes than another: the median of the rounds' differences. A machine that is slower for a while
 * is so for both of a round.
 */
export function difference(rounds: number[][], floor: number[][]): number {
  const differences = rounds.flatMap((samples, i) => {
    const others = floor[i] ?? [];
    return samples.slice(0, others.length).map((sample, k) => sample - (others[k] ?? 0));
  });
  return quantile(sorted(differences), 0.5);
}
