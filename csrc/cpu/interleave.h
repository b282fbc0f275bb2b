// Between a row of memory, x[m * group + c], and planes of vectors, x[c][m].
//
// Once a row is split into planes a group's sum runs over registers: no operation is left that works
// across lanes. A plane's vector `v` holds lanes m = v * kLanes ..., zero beyond the row's end.
#pragma once

#include <algorithm>

#include "vector.h"

namespace projkern::cpu::PROJKERN_TARGET {

// Where vector v of plane c lies, in floats.
struct Planes {
    int64_t vector_stride, plane_stride;
};

// How many elements further on that lies which is read soon, and which is read later.
struct Ahead {
    int64_t soon = 0, later = 0;

    template <class T>
    void ask(const T* x) const {
        prefetch(x + soon);
        prefetch_far(x + later);
    }
};

namespace detail {

// Turns `Group` vectors of consecutive elements into `Group` planes, out[step * c].
template <int Group>
inline void split(const Vec* x, Vec* out, int step) {
    if constexpr (Group == 1) {
        out[0] = x[0];
    } else {
        Vec even[Group / 2], odd[Group / 2];
        for (int i = 0; i < Group / 2; ++i) {
            even[i] = evens(x[2 * i], x[2 * i + 1]);
            odd[i] = odds(x[2 * i], x[2 * i + 1]);
        }
        split<Group / 2>(even, out, 2 * step);
        split<Group / 2>(odd, out + step, 2 * step);
    }
}

template <int Group>
inline void merge(const Vec* planes, int step, Vec* out) {
    if constexpr (Group == 1) {
        out[0] = planes[0];
    } else {
        Vec even[Group / 2], odd[Group / 2];
        merge<Group / 2>(planes, 2 * step, even);
        merge<Group / 2>(planes + step, 2 * step, odd);
        for (int i = 0; i < Group / 2; ++i) {
            out[2 * i] = zip_low(even[i], odd[i]);
            out[2 * i + 1] = zip_high(even[i], odd[i]);
        }
    }
}

template <int Group, class T>
void split_row(const T* row, int64_t count, Planes at, float* out, const Ahead& ahead) {
    Vec x[Group], planes[Group];
    for (int64_t m = 0; m < count; m += kLanes) {
        const int64_t left = (count - m) * Group;
        if (left >= Group * kLanes) {
            for (int i = 0; i < Group; ++i) {
                if (starts_line<T>(i)) ahead.ask(row + i * kLanes);
                x[i] = load(row + i * kLanes);
            }
        } else {
            for (int i = 0; i < Group; ++i)
                x[i] = load_part(row + i * kLanes, std::clamp<int64_t>(left - i * kLanes, 0, kLanes));
        }
        split<Group>(x, planes, 1);
        for (int c = 0; c < Group; ++c) store(out + c * at.plane_stride, planes[c]);
        row += Group * kLanes;
        out += at.vector_stride;
    }
}

template <class T>
void split_row_any(const T* row, int64_t count, int64_t group, Planes at, float* out) {
    for (int64_t m = 0; m < count; m += kLanes) {
        const int64_t lanes = std::min<int64_t>(kLanes, count - m);
        for (int64_t c = 0; c < group; ++c) {
            float plane[kLanes] = {};
            for (int64_t i = 0; i < lanes; ++i) plane[i] = to_float(row[i * group + c]);
            store(out + c * at.plane_stride, load(plane));
        }
        row += lanes * group;
        out += at.vector_stride;
    }
}

template <int Group, class Sink>
void merge_row(const float* in, Planes at, int64_t count, const Sink& sink) {
    Vec planes[Group], x[Group];
    for (int64_t m = 0; m < count; m += kLanes) {
        for (int c = 0; c < Group; ++c) planes[c] = load(in + c * at.plane_stride);
        merge<Group>(planes, 1, x);
        const int64_t first = m * Group, left = (count - m) * Group;
        if (left >= Group * kLanes) {
            for (int i = 0; i < Group; ++i) sink.full(first + i * kLanes, x[i]);
        } else {
            for (int i = 0; i < Group; ++i)
                if (i * kLanes < left)
                    sink.part(first + i * kLanes, x[i], std::min<int64_t>(kLanes, left - i * kLanes));
        }
        in += at.vector_stride;
    }
}

template <class Sink>
void merge_row_any(const float* in, int64_t group, Planes at, int64_t count, const Sink& sink) {
    for (int64_t m = 0; m < count; m += kLanes) {
        const int64_t elements = std::min<int64_t>(kLanes, count - m) * group;
        for (int64_t first = 0; first < elements; first += kLanes) {
            const int64_t lanes = std::min<int64_t>(kLanes, elements - first);
            float x[kLanes] = {};
            for (int64_t i = 0; i < lanes; ++i) x[i] = in[(first + i) % group * at.plane_stride + (first + i) / group];
            sink.part(m * group + first, load(x), lanes);
        }
        in += at.vector_stride;
    }
}

}  // namespace detail

// `row` holds count * group elements; those that lie ahead are asked for meanwhile.
template <class T>
void split_row(const T* row, int64_t count, int64_t group, Planes at, float* out, const Ahead& ahead = {}) {
    switch (group) {
        case 1: return detail::split_row<1>(row, count, at, out, ahead);
        case 2: return detail::split_row<2>(row, count, at, out, ahead);
        case 4: return detail::split_row<4>(row, count, at, out, ahead);
        case 8: return detail::split_row<8>(row, count, at, out, ahead);
        case 16: return detail::split_row<16>(row, count, at, out, ahead);
        default: return detail::split_row_any(row, count, group, at, out);
    }
}

// Hands the count * group elements to `sink`, a vector at a time.
template <class Sink>
void merge_row(const float* in, int64_t group, Planes at, int64_t count, const Sink& sink) {
    switch (group) {
        case 1: return detail::merge_row<1>(in, at, count, sink);
        case 2: return detail::merge_row<2>(in, at, count, sink);
        case 4: return detail::merge_row<4>(in, at, count, sink);
        case 8: return detail::merge_row<8>(in, at, count, sink);
        case 16: return detail::merge_row<16>(in, at, count, sink);
        default: return detail::merge_row_any(in, group, at, count, sink);
    }
}

// Sinks: write the elements of a row, stream them past the caches, or add them.
template <class T>
struct Write {
    T* row;
    void full(int64_t i, Vec x) const { store(row + i, x); }
    void part(int64_t i, Vec x, int64_t count) const { store_part(row + i, x, count); }
};

template <class T>
struct Stream {
    T* row;
    void full(int64_t i, Vec x) const { stream(row + i, x); }
    void part(int64_t i, Vec x, int64_t count) const { store_part(row + i, x, count); }
};

struct Add {
    float* row;
    void full(int64_t i, Vec x) const { store(row + i, load(row + i) + x); }
    void part(int64_t i, Vec x, int64_t count) const { store_part(row + i, load_part(row + i, count) + x, count); }
};

}  // namespace projkern::cpu::PROJKERN_TARGET
