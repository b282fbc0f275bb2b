// Scratch memory of one thread, kept from call to call: fresh pages cost more than the work on them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace projkern::cpu::PROJKERN_TARGET {

class Buffer {
  public:
    // The memory holds what it held before, or nothing in particular.
    void* reserve(size_t bytes) {
        if (bytes > size_) {
            data_.reset();
            size_ = 0;
            const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
            data_.reset(std::aligned_alloc(kAlign, rounded));
            if (!data_) throw std::bad_alloc();
            size_ = rounded;
        }
        return data_.get();
    }

  private:
    static constexpr size_t kAlign = 4096;
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    std::unique_ptr<void, Free> data_;
    size_t size_ = 0;
};

// Hands out parts of one buffer. Lay out twice with the same calls: once to measure, once to place.
class Arena {
  public:
    explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}

    float* floats(int64_t count) {
        char* at = base_ + used_;
        used_ += (size_t(count) * sizeof(float) + 63) / 64 * 64;
        return reinterpret_cast<float*>(at);
    }

    size_t used() const { return used_; }

  private:
    char* base_;
    size_t used_ = 0;
};

}  // namespace projkern::cpu::PROJKERN_TARGET
