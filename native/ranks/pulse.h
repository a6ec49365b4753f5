/* The pulse of ranks that are processes: who is still there, and errors of other ranks. See pulse.c. All take NULL for no pulse. */
#ifndef MOE_PULSE_H
#define MOE_PULSE_H

typedef struct pulse pulse;

/* Starts the thread. NULL where it does not start. MPI_THREAD_MULTIPLE must have been granted; all ranks call it. */
pulse *pulse_start(int rank, int size, double lost_seconds);
/* Tells all others that the group is ended, and why; returns when that has left, or after a while. */
void pulse_end(pulse *p, const char *reason);
/* Whether another rank ended the group or was silent for too long. */
int pulse_has_ended(const pulse *p);
/* Valid once ended. */
const char *pulse_reason(const pulse *p);
int pulse_reason_rank(const pulse *p);
/* When this rank is through: tells the others not to expect anything more, and returns 0 when all others are through as well. -1 where the group was
   ended instead; then the pulse goes on. */
int pulse_stop(pulse *p);

#endif
