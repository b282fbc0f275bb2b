// How the fast paths of the forward walk through a strip.
#pragma once

#include "strip.cuh"

namespace projkern::cuda {

// A block takes kCols columns of its strip after another, and for each of them kTasks tasks after another:
//
//     enter(col)                 once for each columns: W to registers
//     work(col, task, half)      p and q of these tasks are in this half of the shared memory
//     copy(col, task, half)      asks for them, while another half is worked on
//
// One barrier a step is enough: it says that a step's copies have arrived and that the half of the step before is free.
template <int kCols, int kTasks, class Copy, class Enter, class Work>
PROJKERN_DEVICE void each_step(int64_t cols, int64_t batch, Copy copy, Enter enter, Work work) {
    barrier();  // of an earlier scale's last step
    copy(0, 0, 0);
    commit_copies();
    int half = 0;
    for (int64_t col = 0; col < cols; col += kCols) {
        enter(col);
        for (int64_t task = 0; task < batch; task += kTasks) {
            wait_copies<0>();
            barrier();
            const bool next_columns = task + kTasks >= batch;
            if (!next_columns || col + kCols < cols)
                copy(next_columns ? col + kCols : col, next_columns ? 0 : task + kTasks, half ^ 1);
            commit_copies();
            work(col, task, half);
            half ^= 1;
        }
    }
}

}  // namespace projkern::cuda
