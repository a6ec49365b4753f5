/*
 * The start and the end of MPI in a process, its pulse, and communicators of groups of ranks. The operations: mpi.c.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif

#include "ranks_mpi.h"

/* Plugins of Open MPI look its symbols up globally, and whoever loaded this library did so locally. */
static void make_mpi_global(void) {
  Dl_info info;
  if (dladdr((void *)(uintptr_t)MPI_Init_thread, &info) && info.dli_fname) dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

/* Starts MPI and the pulse, which takes a rank for lost after `lost_seconds` of silence. NULL where MPI does not start. */
EXPORT member_rank *moe_mpi_init(double lost_seconds) {
  int is_initialized = 0;
  make_mpi_global();
  MPI_Initialized(&is_initialized);
  member_rank *self = calloc(1, sizeof *self);
  if (!self || is_initialized) {
    free(self);
    return NULL;
  }
  if (MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &self->provided) != MPI_SUCCESS) {
    free(self);
    return NULL;
  }
#if defined(__linux__)
  prctl(PR_SET_TIMERSLACK, 1000); /* ns: short sleeps are as short as they say */
#endif
  MPI_Comm_dup(MPI_COMM_WORLD, &self->world);
  MPI_Comm_set_errhandler(self->world, MPI_ERRORS_RETURN);
  MPI_Comm_rank(self->world, &self->rank);
  MPI_Comm_size(self->world, &self->size);
  if (self->provided == MPI_THREAD_MULTIPLE && self->size > 1) self->pulse = pulse_start(self->rank, self->size, lost_seconds);
  return self;
}
EXPORT int moe_mpi_rank(const member_rank *self) { return self->rank; }
EXPORT int moe_mpi_size(const member_rank *self) { return self->size; }
EXPORT int moe_mpi_has_pulse(const member_rank *self) { return self->pulse != NULL; }

/* Ends the group: tells all others why. */
EXPORT void moe_mpi_end(member_rank *self, const char *reason) { pulse_end(self->pulse, reason); }
/* Whether another rank ended the group, or is lost; then `moe_mpi_reason` says why. */
EXPORT int moe_mpi_has_ended(const member_rank *self) { return pulse_has_ended(self->pulse); }
EXPORT const char *moe_mpi_reason(const member_rank *self) { return self->pulse ? pulse_reason(self->pulse) : ""; }
/* The rank that gave the reason; -1 where it was this one's observation that another is lost. */
EXPORT int moe_mpi_reason_rank(const member_rank *self) { return self->pulse ? pulse_reason_rank(self->pulse) : -1; }
EXPORT const char *moe_mpi_error(const member_rank *self) { return self->error; }

static void *exit_soon(void *argument) {
  (void)argument;
  sleep(3);
  _exit(1);
}

/* Ends all processes of the job with this exit code, this one within three seconds even where MPI cannot reach the others. */
EXPORT void moe_mpi_abort(member_rank *self, int code) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, exit_soon, NULL) == 0) pthread_detach(thread);
  MPI_Abort(self->world, code);
  _exit(code);
}

/* When all ranks are through: says so, and ends MPI; the process lives on. 0, or -1 where the group was ended instead: then abort. */
EXPORT int moe_mpi_finalize(member_rank *self) {
  /* Buffered messages may still be on their way. */
  while (self->active && !pulse_has_ended(self->pulse) && moe_mpi_step_all(self) == 0) usleep(100);
  if (pulse_stop(self->pulse) != 0) return -1;
  for (membership *in = self->memberships, *next; in; in = next) {
    next = in->next;
    MPI_Comm_free(&in->collective);
    MPI_Comm_free(&in->direct);
    free(in->members);
    free(in);
  }
  for (int i = 0; i < SPARE_BUFFERS; i++) free(self->spare[i].data);
  MPI_Comm_free(&self->world);
  MPI_Finalize();
  free(self);
  return 0;
}

/* A part of `parent` (NULL: of all ranks), in the order of `members`. All ranks of the parent call it; those in no group with size 0, who get NULL. */
EXPORT membership *moe_mpi_open(member_rank *self, membership *parent, int split, int index, const int32_t *members, int size, int rank) {
  (void)split;
  MPI_Comm above = parent ? parent->collective : self->world, collective, direct;
  if (MPI_Comm_split(above, size > 0 ? index : MPI_UNDEFINED, rank, &collective) != MPI_SUCCESS) return NULL;
  if (size == 0) return NULL;
  membership *in = calloc(1, sizeof *in);
  int *copy = malloc((size_t)size * sizeof *copy);
  if (!in || !copy || MPI_Comm_dup(collective, &direct) != MPI_SUCCESS) {
    free(in);
    free(copy);
    return NULL;
  }
  for (int r = 0; r < size; r++) copy[r] = members[r];
  MPI_Comm_set_errhandler(collective, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(direct, MPI_ERRORS_RETURN);
  *in = (membership){self->memberships, self, collective, direct, rank, size, copy, 0};
  self->memberships = in;
  return in;
}
