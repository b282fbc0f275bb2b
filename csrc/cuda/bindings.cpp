// Sizes, raw pointers and a stream in, nothing of any tensor library: one build serves every version of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "../python_types.h"
#include "project.h"

namespace py = pybind11;

namespace projkern {
namespace {

class CudaPlan {
  public:
    CudaPlan(const std::vector<WeightRow>& weights, const std::vector<MatrixRow>& matrices, int64_t p_width,
             int64_t q_width)
        : plan_(make_plan(weights, matrices, p_width, q_width)) {}

    void project_forward(const std::vector<Address>& weights, const std::string& weight_dtype, Address p, Address q,
                         const std::vector<Address>& outputs, const std::string& output_dtype, int64_t batch,
                         Address stream) const {
        const cuda::Forward call{pointers<const void>(weights, plan_.weights.size(), "weights"),
                                 dtype(weight_dtype),
                                 pointer<const float>(p),
                                 pointer<const float>(q),
                                 pointers<void>(outputs, plan_.matrices.size(), "outputs"),
                                 dtype(output_dtype),
                                 batch};
        py::gil_scoped_release release;
        cuda::project_forward(plan_, call, pointer<void>(stream));
    }

    void project_backward(const std::vector<Address>& weights, const std::string& weight_dtype, Address p, Address q,
                          const std::vector<Address>& grads, const std::string& grad_dtype,
                          const std::vector<Address>& d_weights, const std::string& d_weight_dtype, Address dp,
                          Address dq, Address workspace, int64_t batch, Address stream) const {
        const cuda::Backward call{pointers<const void>(weights, plan_.weights.size(), "weights"),
                                  dtype(weight_dtype),
                                  pointer<const float>(p),
                                  pointer<const float>(q),
                                  pointers<const void>(grads, plan_.matrices.size(), "grads"),
                                  dtype(grad_dtype),
                                  pointers<void>(d_weights, d_weights.empty() ? 0 : plan_.weights.size(), "d_weights"),
                                  dtype(d_weight_dtype),
                                  pointer<float>(dp),
                                  pointer<float>(dq),
                                  pointer<float>(workspace),
                                  batch};
        py::gil_scoped_release release;
        cuda::project_backward(plan_, call, pointer<void>(stream));
    }

    int64_t partial_dq_size(int64_t batch) const { return cuda::partial_dq_size(plan_, batch); }

  private:
    Plan plan_;
};

py::dict build_info() {
    py::dict info;
    info["compiler"] = PROJKERN_COMPILER;
    info["architectures"] = PROJKERN_ARCHITECTURES;
    info["version"] = PROJKERN_VERSION;
    info["revision"] = PROJKERN_REVISION;
    return info;
}

}  // namespace
}  // namespace projkern

PYBIND11_MODULE(_cuda, module) {
    using namespace projkern;
    py::class_<CudaPlan>(module, "Plan", py::module_local())
        .def(py::init<const std::vector<WeightRow>&, const std::vector<MatrixRow>&, int64_t, int64_t>(),
             py::arg("weights"), py::arg("matrices"), py::arg("p_width"), py::arg("q_width"))
        .def("project_forward", &CudaPlan::project_forward, py::arg("weights"), py::arg("weight_dtype"), py::arg("p"),
             py::arg("q"), py::arg("outputs"), py::arg("output_dtype"), py::arg("batch"), py::arg("stream"))
        .def("project_backward", &CudaPlan::project_backward, py::arg("weights"), py::arg("weight_dtype"), py::arg("p"),
             py::arg("q"), py::arg("grads"), py::arg("grad_dtype"), py::arg("d_weights"), py::arg("d_weight_dtype"),
             py::arg("dp"), py::arg("dq"), py::arg("workspace"), py::arg("batch"), py::arg("stream"))
        .def("partial_dq_size", &CudaPlan::partial_dq_size, py::arg("batch"));
    module.def("build_info", &build_info);
    module.attr("interface") = kInterface;
}
