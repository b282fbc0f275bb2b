#include "machine.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "races.h"

namespace projkern::cuda::on_host {

Place place;

namespace {

constexpr int kMostThreads = 1024;
constexpr int kMostShared = 99 << 10;    // of one block, on the smallest of the cards that we serve (8.6, 8.9, 12.0)
constexpr int kMargin = 4096;            // poisoned bytes on either side of shared memory, looked at after each block
constexpr unsigned char kPoison = 0xff;  // NaN in float32, bfloat16 and float16
constexpr int64_t kStack = 128 << 10;    // with a guard page at its low end
constexpr int64_t kGuard = 4096;

enum class Order { ascending, descending, random };

struct Copy {
    void* shared;
    const void* global;  // null: zeros
};

// A fiber. It outlives its block, and then runs the same thread of the next one.
struct Thread {
    enum State { ready, at_barrier, in_warp, returned } state;
    const char* waits_for;
    const void* instruction;  // that it waits at
    Exchange exchange;
    void* brought;
    std::vector<Copy> copies;               // not yet committed
    std::deque<std::vector<Copy>> batches;  // committed
    bool started;
    jmp_buf context;
};

struct Machine {
    Order order = Order::ascending;
    uint64_t seed = 0;
    bool late_copies = true;

    std::mutex one_launch;
    Work work;
    std::unique_ptr<Thread[]> threads{new Thread[kMostThreads]()};
    unsigned char* stacks = nullptr;
    jmp_buf context;
    std::string failure;

    int count;                          // threads of a block
    uint64_t ready[kMostThreads / 64];  // one bit a thread
    int waiting;                        // at the barrier
    int returned;
    int arrived[kMostThreads / 32];  // lanes of a warp
    uint32_t warp_barriers[kMostThreads / 32];
    std::mt19937_64 random;
    alignas(16) unsigned char memory[kMargin + kMostShared + kMargin];

    Thread& here() { return threads[place.thread]; }
    void set_ready(int index) {
        threads[index].state = Thread::ready;
        ready[index / 64] |= uint64_t(1) << index % 64;
    }
    int choose();
    void resume(int index);
    void pause();
    void wait(Thread::State state, const char* what, const void* instruction);
    void run_block(int64_t block);
    void check_margins();
    std::string describe();
    void restart();
};

// Never destroyed: fibers may still hold on to it.
Machine& machine = *new Machine;

// A thread that may go on, by the schedule; -1 if none may.
int Machine::choose() {
    const int words = (count + 63) / 64;
    if (order == Order::descending) {
        for (int word = words - 1; word >= 0; --word)
            if (ready[word]) return 64 * word + 63 - __builtin_clzll(ready[word]);
        return -1;
    }
    const int first = order == Order::random ? int(random() % count) : 0;
    for (int step = 0; step <= words; ++step) {  // the first word twice: from `first` on, and up to it
        const int word = (first / 64 + step) % words;
        const uint64_t mask = step == 0 ? ~uint64_t(0) << first % 64 : ~uint64_t(0);
        if (ready[word] & mask) return 64 * word + __builtin_ctzll(ready[word] & mask);
    }
    return -1;
}

void run_threads() {
    for (;;) {
        machine.work.call(machine.work.kernel, machine.work.argument);
        machine.wait(Thread::returned, "", nullptr);
    }
}

[[gnu::noinline]] void Machine::resume(int index) {
    Thread& next = threads[index];
    place.thread = index;
    place.warp_barriers = warp_barriers[index / 32];
    place.running = true;
    if (_setjmp(context) == 0) {
        if (next.started) _longjmp(next.context, 1);
        next.started = true;
        ucontext_t fresh;
        getcontext(&fresh);
        fresh.uc_stack.ss_sp = stacks + index * kStack + kGuard;
        fresh.uc_stack.ss_size = kStack - kGuard;
        makecontext(&fresh, run_threads, 0);
        setcontext(&fresh);
    }
    place.running = false;
}

// Back to the schedule, until this thread is chosen again.
[[gnu::noinline]] void Machine::pause() {
    if (_setjmp(here().context) == 0) _longjmp(context, 1);
}

void Machine::wait(Thread::State state, const char* what, const void* instruction) {
    Thread& me = here();
    me.state = state;
    me.waits_for = what;
    me.instruction = instruction;
    ready[place.thread / 64] &= ~(uint64_t(1) << place.thread % 64);
    if (state == Thread::at_barrier && ++waiting == count) {
        waiting = 0;
        ++place.barriers;
        for (int index = 0; index < count; ++index) set_ready(index);
    }
    if (state == Thread::in_warp) {
        const int warp = place.thread / 32;
        if (++arrived[warp] == 32) {
            void* lanes[32];
            for (int lane = 0; lane < 32; ++lane) lanes[lane] = threads[32 * warp + lane].brought;
            me.exchange(lanes);
            arrived[warp] = 0;
            ++warp_barriers[warp];
            for (int lane = 0; lane < 32; ++lane) set_ready(32 * warp + lane);
        }
    }
    if (state == Thread::returned) ++returned;
    pause();
}

// Who waits for what, neighbours that agree in one.
std::string Machine::describe() {
    const auto state = [&](int index) {
        const Thread& x = threads[index];
        if (x.state == Thread::returned) return std::string("returned");
        return std::string("at ") + x.waits_for + line_of(x.instruction);
    };
    std::string text;
    for (int first = 0, next; first < count; first = next) {
        const Thread& x = threads[first];
        for (next = first + 1; next < count; ++next)
            if (threads[next].state != x.state || threads[next].instruction != x.instruction) break;
        if (!text.empty()) text += "; ";
        text += next - first > 1 ? "threads " + std::to_string(first) + " to " + std::to_string(next - 1)
                                 : "thread " + std::to_string(first);
        text += " " + state(first);
    }
    return text;
}

void Machine::check_margins() {
    for (int offset = -kMargin; offset < place.shared_bytes + kMargin; ++offset) {
        if (offset == 0) offset = place.shared_bytes;
        if (memory[kMargin + offset] != kPoison)
            throw std::runtime_error("block " + std::to_string(place.block) + ": something was written to byte " +
                                     std::to_string(offset) + " of a shared memory of " +
                                     std::to_string(place.shared_bytes) + " bytes");
    }
}

void Machine::run_block(int64_t block) {
    place.block = block;
    place.barriers = 0;
    waiting = returned = 0;
    std::fill(std::begin(ready), std::end(ready), 0);
    std::fill(std::begin(arrived), std::end(arrived), 0);
    std::fill(std::begin(warp_barriers), std::end(warp_barriers), 0);
    for (int index = 0; index < count; ++index) {
        set_ready(index);
        threads[index].copies.clear();
        threads[index].batches.clear();
    }
    if (place.shared_bytes > 0) std::memset(memory, kPoison, 2 * kMargin + place.shared_bytes);
    while (returned < count) {
        const int next = choose();
        if (next < 0) throw std::runtime_error("block " + std::to_string(block) + " is stuck: " + describe());
        resume(next);
        if (!failure.empty()) throw std::runtime_error(failure);
    }
    if (place.shared_bytes > 0) check_margins();
}

// After a failure, fibers are somewhere inside of a kernel: they start afresh.
void Machine::restart() {
    failure.clear();
    for (int index = 0; index < kMostThreads; ++index) threads[index].started = false;
    if (stacks != nullptr) return;
    void* memory = mmap(nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory for the threads' stacks");
    stacks = static_cast<unsigned char*>(memory);
    for (int index = 0; index < kMostThreads; ++index) mprotect(stacks + index * kStack, kGuard, PROT_NONE);
    ignore_stacks(stacks, kMostThreads * kStack);
}

void perform(const Copy& copy) {
    if (copy.global != nullptr)
        std::memcpy(copy.shared, copy.global, 16);
    else
        std::memset(copy.shared, 0, 16);
}

}  // namespace

[[gnu::noinline]] void fail(const char* what, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, what);
    std::vsnprintf(text, sizeof text, what, arguments);
    va_end(arguments);
    machine.failure = "block " + std::to_string(place.block) + ", thread " + std::to_string(place.thread) + ": " +
                      text + line_of(__builtin_return_address(0));
    for (;;) machine.pause();
}

[[gnu::noinline]] void wait_for_block() { machine.wait(Thread::at_barrier, "barrier", __builtin_return_address(0)); }

[[gnu::noinline]] void wait_for_warp(const char* what, Exchange exchange, void* brought) {
    Thread& me = machine.here();
    for (int lane = 0; lane < 32; ++lane) {
        const Thread& other = machine.threads[place.thread / 32 * 32 + lane];
        if (other.state == Thread::in_warp && other.exchange != exchange)
            fail("is at %s%s where lane %d of its warp is at %s%s", what, line_of(__builtin_return_address(0)).c_str(),
                 lane, other.waits_for, line_of(other.instruction).c_str());
    }
    me.exchange = exchange;
    me.brought = brought;
    machine.wait(Thread::in_warp, what, __builtin_return_address(0));
}

[[gnu::noinline]] void start_copy(void* shared, const void* global, bool valid) {
    const Copy copy{shared, valid ? global : nullptr};
    if (shared < place.shared || static_cast<unsigned char*>(shared) + 16 > place.shared + place.shared_bytes)
        fail("copy_async to what is not the block's shared memory");
    if (valid) note_access(Access::read, global, 16, __builtin_return_address(0));
    note_access(Access::copy_starts, shared, 16, __builtin_return_address(0));
    if (!machine.late_copies) perform(copy);
    machine.here().copies.push_back(copy);
}

void commit_copies() {
    Thread& me = machine.here();
    me.batches.push_back(std::move(me.copies));
    me.copies.clear();
}

[[gnu::noinline]] void finish_copies(int pending) {
    for (Thread& me = machine.here(); int(me.batches.size()) > pending; me.batches.pop_front())
        for (const Copy& copy : me.batches.front()) {
            if (copy.global != nullptr) note_access(Access::read, copy.global, 16, __builtin_return_address(0));
            note_access(Access::copy_ends, copy.shared, 16, __builtin_return_address(0));
            if (machine.late_copies) perform(copy);
        }
}

[[gnu::noinline]] void read_constant(const void* address, int64_t bytes) {
    note_access(Access::read_constant, address, bytes, __builtin_return_address(0));
}

[[gnu::noinline]] void add_atomically(float* address, float value) {
    note_access(Access::atomic, address, sizeof(float), __builtin_return_address(0));
    *address += value;
}

void run(const Work& work, int64_t blocks, int threads, int shared_bytes) {
    if (blocks < 1 || blocks > 0x7fffffff || threads < 1 || threads > kMostThreads || threads % 32 != 0 ||
        shared_bytes < 0 || shared_bytes > kMostShared)
        throw std::runtime_error("a card would refuse this launch: " + std::to_string(blocks) + " blocks of " +
                                 std::to_string(threads) + " threads with " + std::to_string(shared_bytes) +
                                 " bytes of shared memory");
    const std::lock_guard<std::mutex> lock(machine.one_launch);
    if (machine.stacks == nullptr || !machine.failure.empty()) machine.restart();
    machine.work = work;
    machine.count = threads;
    machine.random.seed(machine.seed);
    place.shared = machine.memory + kMargin;
    place.shared_bytes = shared_bytes;
    forget_accesses();
    allow_argument(work.argument, work.argument_bytes);
    std::vector<int64_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    if (machine.order == Order::descending) std::reverse(order.begin(), order.end());
    if (machine.order == Order::random) std::shuffle(order.begin(), order.end(), machine.random);
    try {
        for (int64_t block : order) machine.run_block(block);
    } catch (...) {
        machine.failure = "failed";
        throw;
    }
}

std::string line_of(const void* instruction) {
    Dl_info library;
    if (instruction == nullptr || dladdr(instruction, &library) == 0) return "";
    // One byte back: what is here follows a call.
    const auto offset = static_cast<const char*>(instruction) - 1 - static_cast<const char*>(library.dli_fbase);
    char text[4096];
    std::snprintf(text, sizeof text, "addr2line -i -e '%s' %tx 2>/dev/null", library.dli_fname, offset);
    FILE* lines = popen(text, "r");
    if (lines == nullptr) return "";
    // From the innermost of the functions that were inlined outwards.
    std::string found;
    while (found.empty() && std::fgets(text, sizeof text, lines) != nullptr) {
        const std::string path(text);
        const std::string line = path.substr(path.rfind('/') + 1, path.find_first_of(" \n") - path.rfind('/') - 1);
        const auto is_of = [&](const char* file) { return line.rfind(file, 0) == 0; };
        if (!is_of("on_host.h") && !is_of("machine.") && !is_of("races.") && !is_of("??")) found = " (" + line + ")";
    }
    pclose(lines);
    return found;
}

extern "C" {

// For build.py.
[[gnu::visibility("default")]] void projkern_set_schedule(int order, uint64_t seed) {
    machine.order = Order(order);
    machine.seed = seed;
}

[[gnu::visibility("default")]] void projkern_set_late_copies(bool late) { machine.late_copies = late; }

[[gnu::visibility("default")]] void projkern_set_memory(int count, const char* const* names, const uintptr_t* begins,
                                                        const int64_t* bytes) {
    allow_memory(count, names, begins, bytes);
}
}

}  // namespace projkern::cuda::on_host
