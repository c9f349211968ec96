import { OsError } from "./error.ts";

/**
 * Makes a folder, and those on the way to it that are missing, with a `mkdir` of one folder. What is there already stays.
 * It begins at the end of the path, since mostly the others are there.
 */
export function makeFolders(mkdir: (path: string, mode: number) => void, path: string, mode: number): void {
  const slash = path.lastIndexOf("/");
  if (isMade(mkdir, path, mode, slash > 0)) return;
  makeFolders(mkdir, path.slice(0, slash), mode);
  isMade(mkdir, path, mode, false);
}

/** Whether the folder is there now; it may not be where `mayMiss` says that those on the way may be missing. */
function isMade(mkdir: (path: string, mode: number) => void, path: string, mode: number, mayMiss: boolean): boolean {
  try {
    mkdir(path, mode);
  } catch (thrown) {
    if (thrown instanceof OsError && thrown.code === "ENOENT" && mayMiss) return false;
    if (!(thrown instanceof OsError) || thrown.code !== "EEXIST") throw thrown;
  }
  return true;
}
