/*
 * MPI_Allreduce as MPI does it, the plain rival of row allreduce.4mb: in place, MPI_FLOAT, MPI_SUM. Under mpirun; rank 0 answers each line
 * `<bytes> <calls>` of standard input with the seconds that the calls took. Between two lines ranks sleep, so that others can be measured.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  long request[2] = {1, 1};
  while (request[1] > 0) {
    if (rank == 0 && scanf("%ld %ld", &request[0], &request[1]) != 2) request[1] = 0;
    MPI_Request pending;
    MPI_Ibcast(request, 2, MPI_LONG, 0, MPI_COMM_WORLD, &pending);
    for (int done = 0; !done; usleep(500)) MPI_Test(&pending, &done, MPI_STATUS_IGNORE);
    if (request[1] == 0) break;
    float *data = calloc(1, (size_t)request[0]);
    for (long i = 0; i < request[0] / 4; i++) data[i] = 0;
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = MPI_Wtime();
    for (long i = 0; i < request[1]; i++) MPI_Allreduce(MPI_IN_PLACE, data, (int)(request[0] / 4), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    const double seconds = MPI_Wtime() - start;
    free(data);
    if (rank == 0) {
      printf("%.9f\n", seconds);
      fflush(stdout);
    }
  }
  MPI_Finalize();
  return 0;
}
