/** That there is one sluiced only, and not two that answer for each other. */

import * as fs from "node:fs";
import { SluiceError } from "../sys/error.ts";
import { flock } from "../sys/node.ts";

/**
 * Takes the lock of a file, which the kernel gives back when this process ends, however it ends. Any other proof that a
 * daemon lives (a process id, a socket that answers) fails when two start at once.
 *
 * @throws SluiceError E_DAEMON_RUNNING where another process has it; E_DAEMON_LOCK
 */
export function takeLock(file: string): void {
  let fd: number;
  try {
    fs.mkdirSync(file.slice(0, file.lastIndexOf("/")), { recursive: true, mode: 0o755 });
    const { O_RDWR, O_CREAT, O_NOFOLLOW } = fs.constants;
    fd = fs.openSync(file, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600);
    if (flock(fd, false)) {
      // Stays open: with it goes the lock.
      fs.ftruncateSync(fd);
      fs.writeSync(fd, `${process.pid}\n`, 0);
      return;
    }
  } catch (thrown) {
    throw new SluiceError(
      "E_DAEMON_LOCK",
      `${file} cannot be locked: ${(thrown as Error).message}`,
      "run sluiced as root, with flock (util-linux) installed; rootless, set XDG_RUNTIME_DIR",
      thrown,
    );
  }
  const holder = /^\d{1,10}$/m.exec(fs.readFileSync(fd, "utf8"))?.[0] ?? "unknown";
  fs.closeSync(fd);
  throw new SluiceError(
    "E_DAEMON_RUNNING",
    `sluiced runs already, as process ${holder}`,
    "stop that one first; have it started either by systemd or by the engine, not by both",
  );
}
