/** `sluice doctor`. A part: it reads the whole machine. */

import type { EngineName } from "../host/engines.part.ts";
import type { Machine } from "../plan/machine.ts";
import { printable } from "../sys/error.ts";
import type { Sys } from "../sys/sys.ts";
import { check, checked, type Finding } from "./doctor-checks.ts";
import { readFacts } from "./doctor-facts.ts";

export interface DoctorOptions {
  /** Another tree, in place of this machine. */
  readonly root?: string;
  /** The only engine to look at; all that are there where absent. */
  readonly engine?: EngineName;
  readonly json: boolean;
}

const TITLES: Readonly<Record<EngineName, string>> = {
  docker: "Docker",
  containerd: "containerd",
  crio: "CRI-O",
  podman: "Podman",
};

/**
 * Tells what is wrong with a machine and how to put it right. Changes nothing.
 * @param open opens the machine with its settings
 * @returns whether no finding is an error
 */
export function examine(sys: Sys, options: DoctorOptions, open: () => Machine): boolean {
  const all = readFacts(sys, options.root, open);
  const { engine } = options;
  const facts = engine === undefined ? all : { ...all, engines: all.engines.filter(({ name }) => name === engine) };
  const findings = check(facts);
  if (engine !== undefined && facts.engines.length === 0) findings.unshift(notInstalled(engine));
  if (options.json) {
    sys.out(`${JSON.stringify({ findings, checked: checked(facts) }, null, 2)}\n`);
  } else {
    for (const finding of findings) sys.out(`${textOf(finding)}\n`);
    sys.out(`${summaryOf(findings)}\nLooked at: ${printable(checked(facts).join("; "))}.\n`);
  }
  return !findings.some(({ severity }) => severity === "error");
}

function notInstalled(engine: EngineName): Finding {
  return {
    code: "engine-missing",
    severity: "error",
    what: `${TITLES[engine]} is not installed in any of the usual folders`,
    why: "it was asked for with --engine",
    fix: "install it, or leave --engine out",
  };
}

function textOf({ code, severity, what, why, fix }: Finding): string {
  const [first = "", ...rest] = fix.split("\n").map(printable);
  const lines = [`  why: ${printable(why)}`, `  fix: ${first}`, ...rest.map((line) => `       ${line}`)];
  return `${severity}: ${printable(what)} [${code}]\n${lines.join("\n")}\n`;
}

function summaryOf(findings: readonly Finding[]): string {
  if (findings.length === 0) return "Nothing found.";
  const counts = (["error", "warning", "note"] as const).flatMap((severity) => {
    const count = findings.filter((finding) => finding.severity === severity).length;
    return count === 0 ? [] : [`${count} ${severity}${count === 1 ? "" : "s"}`];
  });
  return `${counts.join(", ")}.`;
}
