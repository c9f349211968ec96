import { errorLine, OsError, SluiceError } from "./error.ts";
import { EXIT } from "./exit.ts";
import type { Sys } from "./sys.ts";
import { traceSource } from "./trace.part.ts";

/** What a defect's stack is in terms of the TypeScript sources; empty for an expected refusal. */
export function stackOf(thrown: unknown): string {
  if (thrown instanceof SluiceError || !(thrown instanceof Error) || thrown.stack === undefined) return "";
  return traceSource(thrown.stack);
}

/** Runs a door or command: whatever it throws is told on standard error and becomes the exit code. */
export function enter(sys: Sys, main: (sys: Sys) => number): number {
  try {
    return main(sys);
  } catch (caught) {
    const thrown = isOutput(caught) ? outputError(caught) : caught;
    sys.err(`${errorLine(thrown)}\n${stackOf(thrown)}`);
    return thrown instanceof SluiceError ? EXIT.failed : EXIT.internal;
  }
}

/** Whether it was standard output that could not be written: the one write without a path. */
function isOutput(thrown: unknown): thrown is OsError {
  return thrown instanceof OsError && thrown.syscall === "write" && thrown.path === "";
}

function outputError(error: OsError): SluiceError {
  return new SluiceError(
    "E_OUTPUT",
    `standard output cannot be written (${error.code})`,
    "make room where it goes, or send it elsewhere",
    error,
  );
}
