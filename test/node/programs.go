// SPDX-License-Identifier: Apache-2.0

package node

// Name is what the node is called.
const Name = "node"

// The node has its network to itself, so that its addresses are always the same.
const (
	address      = "10.89.0.1"
	apiPort      = "6443"
	services     = "10.96.0.0/16"
	apiService   = "10.96.0.1"
	issuer       = "https://kubernetes.default.svc.cluster.local"
	flexVolumes  = "/var/lib/kubelet/volume-plugins"
	pki          = "/etc/kubernetes/pki/"
	etcdEndpoint = "http://127.0.0.1:2379"
)

// program is a component as it is started.
type program struct {
	name string
	args []string
}

// controlPlane are the components that need no API server, and the API server.
var controlPlane = []program{
	{"containerd", nil},
	{"etcd", []string{
		"--data-dir=/var/lib/etcd",
		"--listen-client-urls=" + etcdEndpoint,
		"--advertise-client-urls=" + etcdEndpoint,
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--log-level=warn",
		// Nothing here is to survive a crash.
		"--unsafe-no-fsync",
	}},
	{"kube-apiserver", []string{
		"--advertise-address=" + address,
		"--secure-port=" + apiPort,
		"--etcd-servers=" + etcdEndpoint,
		"--service-cluster-ip-range=" + services,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged",
		"--profiling=false",
		"--client-ca-file=" + pki + "ca.crt",
		"--tls-cert-file=" + pki + "apiserver.crt",
		"--tls-private-key-file=" + pki + "apiserver.key",
		"--kubelet-client-certificate=" + pki + "apiserver-kubelet-client.crt",
		"--kubelet-client-key=" + pki + "apiserver-kubelet-client.key",
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + pki + "sa.crt",
		"--service-account-signing-key-file=" + pki + "sa.key",
		"--requestheader-client-ca-file=" + pki + "front-proxy-ca.crt",
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + pki + "front-proxy-client.crt",
		"--proxy-client-key-file=" + pki + "front-proxy-client.key",
	}},
}

// clients are the components that are started when the API server is ready.
var clients = []program{
	{"kubelet", []string{
		"--config=/etc/kubernetes/kubelet.yaml",
		"--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
		"--hostname-override=" + Name,
		"--node-ip=" + address,
	}},
	{"kube-controller-manager", []string{
		"--kubeconfig=/etc/kubernetes/kube-controller-manager.kubeconfig",
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--profiling=false",
		"--service-cluster-ip-range=" + services,
		"--root-ca-file=" + pki + "ca.crt",
		"--service-account-private-key-file=" + pki + "sa.key",
		"--use-service-account-credentials",
		"--cluster-signing-cert-file=" + pki + "ca.crt",
		"--cluster-signing-key-file=" + pki + "ca.key",
		"--flex-volume-plugin-dir=" + flexVolumes,
		// At the default rate it makes its own accounts for 5 seconds.
		"--kube-api-qps=300",
		"--kube-api-burst=600",
	}},
	{"kube-scheduler", []string{
		"--kubeconfig=/etc/kubernetes/kube-scheduler.kubeconfig",
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--profiling=false",
	}},
	{"kube-proxy", []string{
		"--config=/etc/kubernetes/kube-proxy.yaml",
		"--hostname-override=" + Name,
	}},
}
