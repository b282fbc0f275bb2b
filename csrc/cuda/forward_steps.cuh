// How the fast paths of the forward walk through a strip, and what of p and q their blocks have in shared memory.
#pragma once

#include "strip.cuh"

namespace projkern::cuda {

// A path says how it wants them by a Layout:
//
//     kCols, kTasks         columns and tasks of a step
//     slot(task, chunk)     where the step's q[task, 4 chunk to 4 chunk + 4] goes, in 16 bytes, below kSlots
//     kRowStride            the step's p[task, row] goes to task * kRowStride + row
//
// Two steps have their place: one is worked on while the next arrives.
template <class Layout>
struct Staged {
    static constexpr int kQFloats = 4 * Layout::kSlots;
    static constexpr int kFloats = kQFloats + Layout::kTasks * Layout::kRowStride;
    static constexpr int kBytes = 2 * kFloats * sizeof(float);

    PROJKERN_DEVICE static float* q(int place) { return reinterpret_cast<float*>(shared_memory()) + place * kFloats; }
    PROJKERN_DEVICE static float* p(int place) { return q(place) + kQFloats; }

    // Tasks, rows and columns that are not there are left out: what is made of them is not stored.
    PROJKERN_DEVICE static void copy(const Table& table, const Strip& strip, const Projection& projection, int col,
                                     int task, int place) {
        const int tasks = tasks_from(table, task);
        copy_slice<Layout::kCols / 4>(table.q + task * table.q_width + projection.q_offset + col, table.q_width, tasks,
                                      strip.source.cols - col,
                                      [=](int t, int chunk) { return q(place) + 4 * Layout::slot(t, chunk); });
        copy_slice<kStripRows / 4>(table.p + task * table.p_width + projection.p_offset + strip.first, table.p_width,
                                   tasks, strip.rows(),
                                   [=](int t, int chunk) { return p(place) + t * Layout::kRowStride + 4 * chunk; });
    }

    // How many tasks of a step that starts here are there.
    PROJKERN_DEVICE static int tasks_from(const Table& table, int task) {
        const int left = int(table.batch) - task;
        return left < Layout::kTasks ? left : Layout::kTasks;
    }

  private:
    template <int kChunks, class To>
    PROJKERN_DEVICE static void copy_slice(const float* from, int64_t width, int tasks, int size, To to) {
        constexpr int kTasksAtOnce = kThreads / kChunks;
        const unsigned thread = opaque(thread_index());
        const int chunk = thread % kChunks, first = thread / kChunks % kTasksAtOnce;
        from += first * width + 4 * chunk;
#pragma unroll
        for (int t = 0; t < Layout::kTasks; t += kTasksAtOnce) {
            if (t + first < tasks && 4 * chunk < size) copy_async(to(t + first, chunk), from, true);
            from += kTasksAtOnce * width;
        }
    }
};

// A block takes some columns of its strip after the other, and for them some tasks after the others:
//
//     enter(col)                  once for each columns: W to registers
//     work(col, task, place)      p and q of these tasks are there
//
// One barrier a step is enough: the step's copies have arrived, and the place of the step before is free.
template <class Layout, class Enter, class Work>
PROJKERN_DEVICE void each_step(const Table& table, const Strip& strip, const Projection& projection, Enter enter,
                               Work work) {
    const int cols = strip.source.cols, batch = int(table.batch);
    int place = 0;
    barrier();  // after the last step of an earlier scale
    Staged<Layout>::copy(table, strip, projection, 0, 0, place);
    commit_copies();
    for (int col = 0; col < cols; col += Layout::kCols) {
        enter(col);
        for (int task = 0; task < batch; task += Layout::kTasks) {
            wait_copies<0>();
            barrier();
            const bool last = task + Layout::kTasks >= batch;
            if (!last || col + Layout::kCols < cols)
                Staged<Layout>::copy(table, strip, projection, last ? col + Layout::kCols : col,
                                     last ? 0 : task + Layout::kTasks, place ^ 1);
            commit_copies();
            work(col, task, place);
            place ^= 1;
        }
    }
}

}  // namespace projkern::cuda
