// The machine that on_host.h runs kernels on: one block after another, each thread of a block a fiber of its own, in
// one thread of the operating system. A fiber runs from one point of waiting to the next; which one goes on is chosen
// by a schedule, so that what depends on the order of threads shows as a difference between schedules.
#pragma once

#include <cstdint>
#include <string>

namespace projkern::cuda::on_host {

// Where and when the running thread is.
struct Place {
    bool running;  // inside a kernel
    int thread;
    int64_t block;
    unsigned char* shared;
    int shared_bytes;
    uint32_t barriers;       // that the block has passed
    uint32_t warp_barriers;  // that the warp has passed: all that makes its lanes meet
};
extern Place place;

// Ends the launch with an exception, which says block and thread; printf's arguments.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* what, ...);

void wait_for_block();

// Waits for the other lanes of the warp. The last to come does the exchange, among what each lane has brought.
using Exchange = void (*)(void* const (&lanes)[32]);
void wait_for_warp(const char* what, Exchange exchange, void* brought);

void start_copy(void* shared, const void* global, bool valid);
void commit_copies();
void finish_copies(int pending);

// Nobody writes it while the kernel runs.
void read_constant(const void* address, int64_t bytes);

void add_atomically(float* address, float value);

// A kernel, and how to call it.
struct Work {
    void (*call)(void (*kernel)(), const void* argument);
    void (*kernel)();
    const void* argument;
    int64_t argument_bytes;
};

void run(const Work& work, int64_t blocks, int threads, int shared_bytes);

// " (file:line)" of an instruction that follows a call, as far as the debugger's tables tell; these files left out.
std::string line_of(const void* instruction);

}  // namespace projkern::cuda::on_host
