#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace projkern::cpu {
namespace {

std::atomic<GompParallel> gomp_parallel{nullptr};

struct Region {
    int64_t count;
    void (*body)(const void*, int64_t);
    const void* data;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error{};

    void work() noexcept {
        try {
            while (!failed.load(std::memory_order_relaxed)) {
                const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
                if (i >= count) return;
                body(data, i);
            }
        } catch (...) {
            if (!failed.exchange(true)) error = std::current_exception();
        }
    }

    static void enter(void* region) { static_cast<Region*>(region)->work(); }
};

}  // namespace

void use_openmp(GompParallel parallel) { gomp_parallel = parallel; }

void parallel_for(int64_t count, int threads, void (*body)(const void* data, int64_t i), const void* data) {
    Region region{count, body, data};
    const int64_t workers = std::min<int64_t>(count, threads);
    if (workers <= 1) {
        region.work();
    } else if (const GompParallel parallel = gomp_parallel) {
        parallel(Region::enter, &region, unsigned(workers), 0);
    } else {
        std::vector<std::thread> others;
        try {
            for (int64_t i = 1; i < workers; ++i) others.emplace_back(Region::enter, &region);
        } catch (const std::system_error&) {
            // The system has no more threads to give: those that there are do the work.
        }
        region.work();
        for (std::thread& thread : others) thread.join();
    }
    if (region.error) std::rethrow_exception(region.error);
}

}  // namespace projkern::cpu
