#include "races.h"

#ifdef PROJKERN_CHECK_RACES

#include <algorithm>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "machine.h"

// The first and the last of this library's bytes, from the linker.
extern "C" [[gnu::visibility("hidden")]] const char __ehdr_start[], _end[];

namespace projkern::cuda::on_host {
namespace {

constexpr int kGranule = 2;  // bytes that share a record: the size of the smallest type
constexpr int kPage = 4096;

// The last access of one kind. Several that nothing orders among themselves (reads, atomics) are one record: the last
// of them, and how far apart the others were.
struct Record {
    const void* instruction = nullptr;  // null: none
    int32_t block = 0;
    int16_t thread = 0;
    bool blocks = false, warps = false, lanes = false;  // others were of another block, another warp, another lane
    uint32_t barriers = 0, warp_barriers = 0;
};

struct Granule {
    Record read, write;
    int32_t block = 0;      // of the last access
    bool atomic = false;    // the write
    bool copying = false;   // the write is a copy_async that is still under way
    bool constant = false;  // read by something that needs it never to be written
};

using Page = Granule[kPage / kGranule];

struct Range {
    std::string name;
    uintptr_t begin, end;
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_number = 0;
Page* last_page = nullptr;
std::vector<Range> memory;  // that a kernel may touch; empty: not known
Range argument, stacks;
const Range constants{"the library", reinterpret_cast<uintptr_t>(__ehdr_start), reinterpret_cast<uintptr_t>(_end)};

bool holds(const Range& range, uintptr_t begin, uintptr_t end) { return range.begin <= begin && end <= range.end; }

Granule& granule(uintptr_t address) {
    const uintptr_t number = address / kPage;
    if (last_page == nullptr || number != last_number) {
        std::unique_ptr<Page>& page = pages[number];
        if (page == nullptr) page.reset(reinterpret_cast<Page*>(new Page));
        last_number = number;
        last_page = page.get();
    }
    return (*last_page)[address % kPage / kGranule];
}

bool shared(uintptr_t address) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(place.shared);
    return begin <= address && address < begin + place.shared_bytes;
}

// Whether nothing makes the running thread come after the record's.
bool unordered(const Record& old) {
    if (old.instruction == nullptr) return false;
    if (old.blocks || old.block != place.block) return true;
    if (old.barriers != place.barriers) return false;
    if (old.warps || old.thread / 32 != place.thread / 32) return true;
    return old.warp_barriers == place.warp_barriers && (old.lanes || old.thread != place.thread);
}

Record with_me(const Record& old, const void* instruction) {
    Record now;
    now.instruction = instruction;
    now.block = int32_t(place.block);
    now.thread = int16_t(place.thread);
    now.barriers = place.barriers;
    now.warp_barriers = place.warp_barriers;
    if (old.instruction == nullptr) return now;
    now.blocks = old.blocks || old.block != now.block;
    if (old.block != now.block || old.barriers != now.barriers) return now;
    now.warps = old.warps || old.thread / 32 != now.thread / 32;
    if (now.warps || old.warp_barriers != now.warp_barriers) return now;
    now.lanes = old.lanes || old.thread != now.thread;
    return now;
}

bool reads(Access access) { return access == Access::read || access == Access::read_constant; }

std::string name_of(uintptr_t address) {
    const auto byte = [&](uintptr_t begin) { return "byte " + std::to_string(address - begin) + " of "; };
    if (shared(address)) return byte(reinterpret_cast<uintptr_t>(place.shared)) + "shared memory";
    for (const Range& range : memory)
        if (holds(range, address, address + 1)) return byte(range.begin) + range.name;
    for (const Range& range : memory)
        if (range.end <= address && address < range.end + kPage)
            return byte(range.begin) + range.name + " (of " + std::to_string(range.end - range.begin) + " bytes)";
    return "address " + std::to_string(address);
}

std::string describe(const Record& old, const char* what) {
    return std::string(what) + " by block " + std::to_string(old.block) + ", thread " + std::to_string(old.thread) +
           (old.blocks || old.warps || old.lanes ? " and others" : "") + line_of(old.instruction);
}

[[noreturn]] void report(Access access, uintptr_t address, const void* instruction, const std::string& other) {
    const char* verb = reads(access) ? "reads" : access == Access::atomic ? "adds to" : "writes";
    fail("%s %s%s %s", verb, name_of(address).c_str(), line_of(instruction).c_str(), other.c_str());
}

void check_range(Access access, uintptr_t begin, uintptr_t end, const void* instruction) {
    if (memory.empty() || (shared(begin) && shared(end - 1))) return;
    for (const Range& range : memory)
        if (holds(range, begin, end)) return;
    report(access, begin, instruction, "and nobody gave it this memory");
}

}  // namespace

void forget_accesses() {
    pages.clear();
    last_page = nullptr;
}

void allow_memory(int count, const char* const* names, const uintptr_t* begins, const int64_t* bytes) {
    memory.clear();
    for (int k = 0; k < count; ++k) memory.push_back({names[k], begins[k], begins[k] + bytes[k]});
}

void allow_argument(const void* address, int64_t bytes) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
    argument = {"the argument", begin, begin + bytes};
}

void ignore_stacks(const void* address, int64_t bytes) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
    stacks = {"the stacks", begin, begin + bytes};
}

void note_access(Access access, const void* address, int64_t bytes, const void* instruction) {
    if (!place.running) return;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(address), end = begin + bytes;
    if (holds(stacks, begin, end)) return;
    if (reads(access) && (holds(argument, begin, end) || holds(constants, begin, end))) return;
    check_range(access, begin, end, instruction);
    for (uintptr_t at = begin / kGranule * kGranule; at < end; at += kGranule) {
        Granule& x = granule(at);
        if (shared(at) && x.block != place.block) x = {};  // each block has its own
        x.block = int32_t(place.block);
        if (x.copying && access != Access::copy_ends)
            report(access, at, instruction, "while a " + describe(x.write, "copy_async"));
        const bool both_atomic = access == Access::atomic && x.atomic;
        if (unordered(x.write) && !both_atomic)
            report(access, at, instruction, "with nothing that orders it after a " + describe(x.write, "write"));
        if (access == Access::read_constant) {
            if (x.write.instruction != nullptr)
                report(access, at, instruction, "as a constant after a " + describe(x.write, "write"));
            x.constant = true;
        }
        if (reads(access)) {
            x.read = with_me(x.read, instruction);
            continue;
        }
        if (x.constant) report(access, at, instruction, "which is a constant for a " + describe(x.read, "read"));
        if (unordered(x.read))
            report(access, at, instruction, "with nothing that orders it after a " + describe(x.read, "read"));
        x.write = with_me(both_atomic ? x.write : Record(), instruction);
        x.atomic = access == Access::atomic;
        x.copying = access == Access::copy_starts;
    }
}

}  // namespace projkern::cuda::on_host

// ---- what the compiler calls ----

using projkern::cuda::on_host::Access;
using projkern::cuda::on_host::note_access;

extern "C" {

#define PROJKERN_ACCESS(name, access, bytes) \
    void name(const void* address) { note_access(access, address, bytes, __builtin_return_address(0)); }
#define PROJKERN_ACCESSES(bytes)                                         \
    PROJKERN_ACCESS(__tsan_read##bytes, Access::read, bytes)             \
    PROJKERN_ACCESS(__tsan_write##bytes, Access::write, bytes)           \
    PROJKERN_ACCESS(__tsan_unaligned_read##bytes, Access::read, bytes)   \
    PROJKERN_ACCESS(__tsan_unaligned_write##bytes, Access::write, bytes) \
    PROJKERN_ACCESS(__tsan_volatile_read##bytes, Access::read, bytes)    \
    PROJKERN_ACCESS(__tsan_volatile_write##bytes, Access::write, bytes)
PROJKERN_ACCESSES(1)
PROJKERN_ACCESSES(2)
PROJKERN_ACCESSES(4)
PROJKERN_ACCESSES(8)
PROJKERN_ACCESSES(16)

void __tsan_read_range(const void* address, unsigned long bytes) {
    note_access(Access::read, address, int64_t(bytes), __builtin_return_address(0));
}
void __tsan_write_range(const void* address, unsigned long bytes) {
    note_access(Access::write, address, int64_t(bytes), __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}

#endif
