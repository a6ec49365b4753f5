/** Other processes of this machine. */

/** Whether a process of this number runs. Numbers are used again: that it is the one that was meant, nobody promises. */
export function isProcessRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: somebody else's process, which does run.
    return (error as NodeJS.ErrnoException).code !== "ESRCH";
  }
}
