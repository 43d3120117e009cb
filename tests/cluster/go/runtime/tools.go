// Package runtime names the programs beside Kubernetes' own that a test cluster is made of. They stand in a module of
// their own, since they are made for newer client libraries than Kubernetes v1.36 is.

//go:build tools

package runtime

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "github.com/coredns/coredns"
)
