// Command provisioner makes `local` volumes for the claims of a test cluster: plain directories, or RAM file systems of
// exactly the claimed size (StorageClass parameter `medium: tmpfs`) for tests that need "no space left on device".
//
// Each volume names the node that the scheduler selected for the claim's first consumer. It ends with its claim.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const name = "cluster.moorage.dev/local"

// Workloads choose any user id and the kubelet changes no ownership below a directory it did not make.
const everybody = 0o777

type local struct{ root string }

func (l local) path(volume string) string { return filepath.Join(l.root, filepath.Base(volume)) }

// Provision makes the directory (and mounts a RAM file system on it) and describes it as a volume of the selected node.
func (l local) Provision(_ context.Context, o controller.ProvisionOptions) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	if o.SelectedNodeName == "" {
		return nil, controller.ProvisioningFinished, errors.New("the claim has no selected node: its class must use WaitForFirstConsumer")
	}
	size := o.PVC.Spec.Resources.Requests[v1.ResourceStorage]
	path := l.path(o.PVName)
	if err := makeVolume(path, o.StorageClass.Parameters["medium"], size.Value()); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   o.PVC.Spec.AccessModes,
			VolumeMode:                    o.PVC.Spec.VolumeMode,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: size},
			PersistentVolumeSource:        v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: path}},
			NodeAffinity:                  onNode(o.SelectedNodeName),
		},
	}, controller.ProvisioningFinished, nil
}

// Delete removes the volume's bytes. It may be called again after a failure.
func (l local) Delete(_ context.Context, volume *v1.PersistentVolume) error {
	path := l.path(volume.Name)
	// EINVAL: not a mount point, ENOENT: already gone.
	if err := syscall.Unmount(path, 0); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return os.RemoveAll(path)
}

func makeVolume(path, medium string, size int64) error {
	if err := os.Mkdir(path, everybody); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil // an earlier attempt made it and then failed to tell the API server
		}
		return err
	}
	if medium == "tmpfs" {
		if err := syscall.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0777", size)); err != nil {
			return errors.Join(fmt.Errorf("mount tmpfs on %s: %w", path, err), os.Remove(path))
		}
	}
	return os.Chmod(path, everybody) // Mkdir's mode went through the umask
}

func onNode(node string) *v1.VolumeNodeAffinity {
	return &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
		MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{node}}},
	}}}}
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	root := flag.String("root", "", "the folder that holds the volumes")
	flag.Parse()
	if err := run(*kubeconfig, *root); err != nil {
		klog.Fatal(err)
	}
}

func run(kubeconfig, root string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	controller.NewProvisionController(ctx, client, name, local{root: root},
		controller.LeaderElection(false),
		controller.FailedProvisionThreshold(0), // 0: try for ever
		controller.FailedDeleteThreshold(0),
		controller.ExponentialBackOffOnError(true),
		controller.RetryIntervalMax(5*time.Second),
		controller.MetricsPort(0),
	).Run(ctx)
	return nil
}
