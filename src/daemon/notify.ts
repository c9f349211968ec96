/**
 * What systemd is told of this service (sd_notify). Node has no datagram sockets of AF_UNIX, so systemd's own program
 * sends it: it is there wherever systemd is, and a message is rare (at start, at the end, and half as often as the
 * watchdog wants).
 */

import { spawn } from "node:child_process";
import * as fs from "node:fs";
import { printable } from "../sys/error.ts";
import type { Log } from "./logs.ts";

const PROGRAMS = ["/usr/bin/systemd-notify", "/bin/systemd-notify"];
/** Milliseconds after which a message is given up. */
const PATIENCE = 5000;

export class Notifier {
  readonly #log: Log;
  readonly #env: Readonly<Record<string, string>>;
  readonly #program: string | undefined;
  /** The messages so far, which are sent one by one. */
  #sent: Promise<void> = Promise.resolve();
  #watchdog: NodeJS.Timeout | undefined;
  #status = "";

  /** @param env of this process: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as systemd sets them */
  constructor(env: Readonly<Record<string, string | undefined>>, log: Log) {
    const { NOTIFY_SOCKET: socket, WATCHDOG_USEC: interval, WATCHDOG_PID: pid } = env;
    this.#log = log;
    this.#env = socket === undefined ? {} : { NOTIFY_SOCKET: socket };
    if (!socket) return; // not started by systemd
    this.#program = PROGRAMS.find((path) => fs.existsSync(path));
    if (this.#program === undefined)
      log.warn(`there is no ${PROGRAMS[0]}: systemd will not know when sluiced is ready`);
    if (!interval || (pid !== undefined && Number(pid) !== process.pid)) return;
    // Half of what systemd waits, as sd_watchdog_enabled(3) advises. It fires only while the event loop turns.
    this.#watchdog = setInterval(() => void this.#send("WATCHDOG=1"), Number(interval) / 2000);
  }

  /** That the start is over. */
  ready(status: string): Promise<void> {
    return this.#send("READY=1", `STATUS=${status}`);
  }

  /** A line for `systemctl status`. */
  status(status: string): void {
    if (status === this.#status) return;
    this.#status = status;
    void this.#send(`STATUS=${status}`);
  }

  /** That the end has begun. */
  stopping(): Promise<void> {
    clearInterval(this.#watchdog);
    return this.#send("STOPPING=1", "STATUS=stopping");
  }

  /** Resolved when the message was sent, or could not be. */
  #send(...assignments: string[]): Promise<void> {
    const program = this.#program;
    if (program === undefined) return Promise.resolve();
    // One line each: nothing that a peer said can add an assignment.
    const args = assignments.map(printable);
    this.#sent = this.#sent.then(() => this.#run(program, args));
    return this.#sent;
  }

  #run(program: string, args: readonly string[]): Promise<void> {
    return new Promise((resolve) => {
      const child = spawn(program, args, { stdio: "ignore", env: this.#env, timeout: PATIENCE, killSignal: "SIGKILL" });
      const failed = (why: string): void => {
        this.#log.warn({ program, message: args }, `systemd could not be told: ${why}`);
        resolve();
      };
      child.on("error", (thrown) => failed(thrown.message));
      child.on("exit", (code, signal) => (code === 0 ? resolve() : failed(`exit code ${code ?? signal}`)));
    });
  }
}
