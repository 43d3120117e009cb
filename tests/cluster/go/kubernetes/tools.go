// Package kubernetes names the programs of Kubernetes that a test cluster is made of, and of its end-to-end tests, so
// that go.mod and go.sum fix their versions. Nothing here is ours; it is built with `cargo xtask cluster build`.
//
// go.mod: Kubernetes is not meant to be imported, so its staging modules have no version of their own in its go.mod;
// the replacements name the one that belongs to it (v1.36.3 is v0.36.3). To move to another release, change both and
// run `go mod tidy`.

//go:build tools

package kubernetes

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kubelet"
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
	_ "k8s.io/kubernetes/test/images/regression-issue-74839"
)
