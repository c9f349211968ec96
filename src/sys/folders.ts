import { OsError } from "./error.ts";

/** Makes a folder, and those on the way to it, with a `mkdir` of one folder. What is there already stays. */
export function makeFolders(mkdir: (path: string, mode: number) => void, path: string, mode: number): void {
  for (let end = path.indexOf("/", 1); ; end = path.indexOf("/", end + 1)) {
    try {
      mkdir(end < 0 ? path : path.slice(0, end), mode);
    } catch (thrown) {
      if (!(thrown instanceof OsError) || thrown.code !== "EEXIST") throw thrown;
    }
    if (end < 0) return;
  }
}
